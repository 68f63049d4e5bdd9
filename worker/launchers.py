"""Which launcher the settings ask for."""

from service.settings import Settings
from worker.launch import Isolation, Limits, LocalLauncher
from worker.launch.devices import cores, default_slots


def make_launcher(settings: Settings) -> LocalLauncher:
    """What runs arms on this host. In a fleet the conductor adds the other hosts, attempt by attempt."""
    limits = Limits(
        memory=int(settings.arm_memory_gib * 2**30),
        disk=int(settings.arm_disk_gib * 2**30),
        processes=settings.arm_processes,
    )
    match settings.launcher:
        case "local" | "fleet":
            threads = max(1, cores() // cpu_slots(settings))
            return LocalLauncher(isolation=Isolation(settings.isolation), limits=limits, threads=threads)


def cpu_slots(settings: Settings) -> int:
    """Ranks that a worker trains on the CPU at a time."""
    return settings.cpu_slots or default_slots(settings.worker_concurrency)
