"""The launchers that the setting `launcher` can choose. A new launcher is one entry here and a folder of its own."""

from collections.abc import Callable
from dataclasses import dataclass

from service.settings import Settings
from worker.launch import Isolation, Launcher, LocalLauncher, ResourceLimits
from worker.launch.devices import DevicePool, HostDevices, cores, default_slots
from worker.launch.protocol import GIB


@dataclass(frozen=True)
class Doctor:
    """What `clipwatch doctor` checks for a launcher: `check` describes what it found, or raises a LaunchError."""

    name: str
    check: Callable[[Settings], str]
    hint: str


@dataclass(frozen=True)
class LauncherEntry:
    """How a launcher is made and checked, and whether its arms train on the devices of this host."""

    make: Callable[[Settings], Launcher]
    doctor: Doctor | None = None
    on_this_host: bool = True


def make_launcher(settings: Settings) -> Launcher:
    """The launcher that the settings choose. In a fleet the conductor adds other hosts for each attempt.

    Raises:
        LaunchError: no arm can be launched at all, for example because the container engine does not answer.
    """
    return LAUNCHERS[settings.launcher].make(settings)


def make_local_launcher(settings: Settings) -> LocalLauncher:
    """The launcher for arms that run on this host."""
    isolation = Isolation(settings.isolation)
    return LocalLauncher(isolation=isolation, limits=_limits(settings), threads=_threads(settings))


def make_device_pool(settings: Settings) -> DevicePool | None:
    """The devices that the comparisons of this worker share. None if arms do not train on this host."""
    return HostDevices(_cpu_slots(settings)) if LAUNCHERS[settings.launcher].on_this_host else None


def _cpu_slots(settings: Settings) -> int:
    return settings.cpu_slots or default_slots(settings.worker_concurrency)


def _threads(settings: Settings) -> int:
    return max(1, cores() // _cpu_slots(settings))


def _limits(settings: Settings) -> ResourceLimits:
    return ResourceLimits(
        memory=int(settings.arm_memory_gib * GIB),
        disk=int(settings.arm_disk_gib * GIB),
        processes=settings.arm_processes,
    )


# The imports below are late: the client of an engine or cluster takes a second to import, and few workers need one.
def _make_docker(settings: Settings) -> Launcher:
    from worker.launch.docker.launcher import DockerLauncher  # noqa: PLC0415

    limits, threads = _limits(settings), _threads(settings)
    return DockerLauncher(settings.container_image, limits=limits, engine=settings.container_engine, threads=threads)


def _check_docker(settings: Settings) -> str:
    from worker.launch.docker.engine_client import describe_engine  # noqa: PLC0415

    return describe_engine(settings.container_engine, settings.container_image)


def _make_kubernetes(settings: Settings) -> Launcher:
    from worker.launch.kubernetes import KubernetesLauncher  # noqa: PLC0415

    return KubernetesLauncher(settings)


def _check_kubernetes(settings: Settings) -> str:
    from worker.launch.kubernetes.cluster import describe_cluster  # noqa: PLC0415

    return describe_cluster(settings)


def _check_fleet(settings: Settings) -> str:
    from worker.fleet.membership import describe_host  # noqa: PLC0415

    host = describe_host(settings, make_local_launcher(settings))
    return f"{host.name} at {host.address} on {host.nic}, {host.gpus} GPUs"


LAUNCHERS = {
    "local": LauncherEntry(make_local_launcher),
    "container": LauncherEntry(
        _make_docker, Doctor("containers", _check_docker, "docker/README.md, “An arm in a container of its own”")
    ),
    "fleet": LauncherEntry(make_local_launcher, Doctor("fleet", _check_fleet, "docs/fleet.md says what a host needs")),
    "kubernetes": LauncherEntry(
        _make_kubernetes,
        Doctor("kubernetes", _check_kubernetes, "docs/kubernetes.md says what a cluster needs"),
        on_this_host=False,
    ),
}
