"""The launcher that the settings choose."""

import socket

from service.contract import Device
from service.settings import Settings
from worker.launch import Isolation, Launcher, Limits, LocalLauncher

# Beyond the conductor's own limit: the cluster ends an arm only when its conductor is gone.
DEADLINE_MARGIN = 900
GIB = 2**30


def make_launcher(settings: Settings) -> Launcher:
    """
    Raises:
        LaunchError: arms cannot be launched there at all.
    """
    match settings.launcher:
        case "local":
            return _local(settings)
        case "kubernetes":
            return _kubernetes(settings)


def _local(settings: Settings) -> Launcher:
    limits = Limits(
        memory=int(settings.arm_memory_gib * GIB),
        disk=int(settings.arm_disk_gib * GIB),
        processes=settings.arm_processes,
    )
    return LocalLauncher(isolation=Isolation(settings.isolation), limits=limits)


def _kubernetes(settings: Settings) -> Launcher:
    # Late: the client of Kubernetes takes a second to import, and only workers of a cluster need it.
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
