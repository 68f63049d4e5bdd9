"""Which launcher the settings ask for."""

from service.settings import Settings
from worker.launch import Isolation, Limits, LocalLauncher


def make_launcher(settings: Settings) -> LocalLauncher:
    """What runs arms on this host. In a fleet the conductor adds the other hosts, attempt by attempt."""
    limits = Limits(
        memory=int(settings.arm_memory_gib * 2**30),
        disk=int(settings.arm_disk_gib * 2**30),
        processes=settings.arm_processes,
    )
    match settings.launcher:
        case "local" | "fleet":
            return LocalLauncher(isolation=Isolation(settings.isolation), limits=limits)
