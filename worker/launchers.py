"""The launcher that the settings ask for."""

from service.settings import Settings
from worker.launch import Isolation, Launcher, Limits, LocalLauncher
from worker.launch.container import ContainerLauncher


def make_launcher(settings: Settings, threads: int | None = None) -> Launcher:
    """Where this worker's arms run, with so many CPU threads for each rank.

    Raises:
        LaunchError: the container engine does not answer, or has no such image.
    """
    limits = Limits(
        memory=int(settings.arm_memory_gib * 2**30),
        disk=int(settings.arm_disk_gib * 2**30),
        processes=settings.arm_processes,
    )
    match settings.launcher:
        case "local":
            return LocalLauncher(isolation=Isolation(settings.isolation), limits=limits, threads=threads)
        case "container":
            return ContainerLauncher(
                settings.container_image, limits=limits, engine=settings.container_engine, threads=threads
            )
