"""Starts and ends the ranks of an arm. `Launcher` is the protocol; `LocalLauncher` runs torchrun on this host and
`FleetLauncher` on several hosts. Other launchers have folders of their own.

A launcher sees an `ArmSpec` and a folder, never a store. The processes that it starts get none of our secrets.
"""

from worker.launch.local import LocalLauncher
from worker.launch.multinode import FleetLauncher
from worker.launch.protocol import Isolation, Launcher, LaunchError, ResourceLimits, RunningArm

__all__ = ["FleetLauncher", "Isolation", "LaunchError", "Launcher", "LocalLauncher", "ResourceLimits", "RunningArm"]
