"""Starts the ranks of an arm and ends them: `Launcher` is the protocol, `LocalLauncher` runs torchrun on this host,
`FleetLauncher` on several.

A launcher sees an `ArmSpec` and a folder, never a store. What it starts gets a scrubbed environment.
"""

from worker.launch.local import LocalLauncher
from worker.launch.multinode import FleetLauncher
from worker.launch.protocol import Isolation, Launcher, LaunchError, ResourceLimits, RunningArm

__all__ = ["FleetLauncher", "Isolation", "LaunchError", "Launcher", "LocalLauncher", "ResourceLimits", "RunningArm"]
