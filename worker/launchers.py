"""The launcher that the settings ask for."""

from service.settings import Settings
from worker.launch import Isolation, Launcher, Limits, LocalLauncher
from worker.launch.container import ContainerLauncher
from worker.launch.devices import cores, default_slots


def make_launcher(settings: Settings) -> Launcher:
    """Where this worker's arms run. In a fleet the conductor adds the other hosts, attempt by attempt.

    Raises:
        LaunchError: the container engine does not answer, or has no such image.
    """
    match settings.launcher:
        case "local" | "fleet":
            return local_launcher(settings)
        case "container":
            return ContainerLauncher(
                settings.container_image,
                limits=_limits(settings),
                engine=settings.container_engine,
                threads=_threads(settings),
            )


def local_launcher(settings: Settings) -> LocalLauncher:
    """Where arms run that need nothing but this host."""
    isolation = Isolation(settings.isolation)
    return LocalLauncher(isolation=isolation, limits=_limits(settings), threads=_threads(settings))


def cpu_slots(settings: Settings) -> int:
    """Ranks that a worker trains on the CPU at a time."""
    return settings.cpu_slots or default_slots(settings.worker_concurrency)


def _threads(settings: Settings) -> int:
    return max(1, cores() // cpu_slots(settings))


def _limits(settings: Settings) -> Limits:
    return Limits(
        memory=int(settings.arm_memory_gib * 2**30),
        disk=int(settings.arm_disk_gib * 2**30),
        processes=settings.arm_processes,
    )
