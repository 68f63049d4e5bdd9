"""Values for pods that follow from the settings. The settings themselves are documented in `service.settings`."""

import socket

from service.contract import Device
from service.settings import Settings
from worker.launch.protocol import GIB

# Seconds beyond `arm_seconds`: the conductor ends an arm that takes longer. The cluster only ends an arm whose
# conductor has ended.
DEADLINE_MARGIN = 900
# Characters of a label.
LABEL_LENGTH = 63


def conductor_name(settings: Settings) -> str:
    """The name of the worker's own pod, which is also a label of its arms."""
    return (settings.kubernetes_pod_name or socket.gethostname())[:LABEL_LENGTH].strip("-._")


def arm_device(settings: Settings) -> Device:
    """The device of arms that do not ask for the CPU."""
    return Device(settings.kubernetes_device)


def disk_bytes(settings: Settings) -> int:
    """What an arm may write."""
    return int(settings.arm_disk_gib * GIB)


def rank_memory_bytes(settings: Settings) -> int:
    """What a rank may use."""
    return int(settings.kubernetes_memory_gib * GIB)


def deadline_seconds(settings: Settings) -> int:
    """When the cluster ends an arm."""
    return int(settings.arm_seconds) + DEADLINE_MARGIN
