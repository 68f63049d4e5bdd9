"""Starts the ranks of an arm and ends them: `Launcher` is the protocol, `LocalLauncher` runs torchrun on this host.

A launcher sees an `ArmSpec` and a folder, never a store. What it starts gets a scrubbed environment.
"""

from worker.launch.local import LocalLauncher
from worker.launch.protocol import Isolation, Launcher, LaunchError, Limits, RunningArm

__all__ = ["Isolation", "LaunchError", "Launcher", "Limits", "LocalLauncher", "RunningArm"]
