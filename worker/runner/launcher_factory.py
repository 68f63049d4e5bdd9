"""The launcher that the settings ask for."""

import socket

from service.contract import Device
from service.settings import Settings
from worker.launch import Isolation, Launcher, LocalLauncher, ResourceLimits
from worker.launch.devices import DevicePool, Devices, cores, default_slots

# Beyond the conductor's own limit: the cluster ends an arm only when its conductor is gone.
DEADLINE_MARGIN = 900
GIB = 2**30


def make_launcher(settings: Settings) -> Launcher:
    """Where this worker's arms run. In a fleet the conductor adds the other hosts, attempt by attempt.

    Raises:
        LaunchError: no arm can be launched there at all, as where a container engine does not answer.
    """
    match settings.launcher:
        case "local" | "fleet":
            return local_launcher(settings)
        case "container":
            return _container(settings)
        case "kubernetes":
            return _kubernetes(settings)


def local_launcher(settings: Settings) -> LocalLauncher:
    """Where arms run that need nothing but this host."""
    isolation = Isolation(settings.isolation)
    return LocalLauncher(isolation=isolation, limits=_limits(settings), threads=_threads(settings))


def make_device_pool(settings: Settings) -> DevicePool | None:
    """What the comparisons of this worker share; nothing where a cluster has the devices: there arms take turns."""
    return None if settings.launcher == "kubernetes" else Devices(cpu_slots(settings))


def cpu_slots(settings: Settings) -> int:
    """Ranks that a worker trains on the CPU at a time."""
    return settings.cpu_slots or default_slots(settings.worker_concurrency)


def _threads(settings: Settings) -> int:
    return max(1, cores() // cpu_slots(settings))


def _limits(settings: Settings) -> ResourceLimits:
    return ResourceLimits(
        memory=int(settings.arm_memory_gib * GIB),
        disk=int(settings.arm_disk_gib * GIB),
        processes=settings.arm_processes,
    )


# The clients of engines and clusters are imported late: they take a second, and only workers with one need them.
def _container(settings: Settings) -> Launcher:
    from worker.launch.docker.launcher import DockerLauncher  # noqa: PLC0415

    return DockerLauncher(
        settings.container_image,
        limits=_limits(settings),
        engine=settings.container_engine,
        threads=_threads(settings),
    )


def _kubernetes(settings: Settings) -> Launcher:
    from worker.launch.kubernetes import ClusterOptions, KubernetesLauncher  # noqa: PLC0415

    return KubernetesLauncher(
        ClusterOptions(
            image=settings.kubernetes_image,
            claim=settings.kubernetes_claim,
            mount=settings.kubernetes_mount,
            namespace=settings.kubernetes_namespace,
            # It is a label too, which may have that many characters.
            conductor=(settings.kubernetes_pod_name or socket.gethostname())[:63].strip("-._"),
            conductor_uid=settings.kubernetes_pod_uid,
            queue=settings.kubernetes_queue,
            topology=settings.kubernetes_topology,
            device=Device(settings.kubernetes_device),
            ranks_per_node=settings.kubernetes_ranks_per_node,
            max_nodes=settings.kubernetes_max_nodes,
            cpus_per_rank=settings.kubernetes_cpus,
            memory_per_rank=int(settings.kubernetes_memory_gib * GIB),
            disk=int(settings.arm_disk_gib * GIB),
            interface=settings.kubernetes_interface,
            deadline=int(settings.arm_seconds) + DEADLINE_MARGIN,
            start_seconds=settings.kubernetes_start_seconds,
        )
    )
