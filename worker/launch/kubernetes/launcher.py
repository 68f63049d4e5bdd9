"""Runs an arm as pods of a Kubernetes cluster."""

import math
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from service.contract import Arm, ArmSpec, Device
from service.settings import Settings
from worker.launch.kubernetes.cluster import FAULTS, Cluster, connection, describe_error
from worker.launch.kubernetes.derived import arm_device, conductor_name, disk_bytes
from worker.launch.kubernetes.job_arm import KubernetesArm
from worker.launch.kubernetes.objects import ArmJob, arm_name
from worker.launch.kubernetes.shared_folder import SharedFolder
from worker.launch.protocol import LOG, LaunchError, RunningArm
from worker.launch.resolve import CPU_WORLD_SIZE, resolve_kernels
from worker.launch.torchrun import write_spec


class KubernetesLauncher:
    """Creates a JobSet for each arm, with one pod for each node that the ranks need.

    A conductor's pod that is killed leaves arms and folders behind. The cluster deletes the arms, because the pod owns
    them. If only the container of the pod is restarted, the new launcher deletes them by name. The folders are removed
    by the next launcher.
    """

    def __init__(self, settings: Settings, cluster: Cluster | None = None):
        """
        Raises:
            LaunchError: there is no cluster, or it refuses a request.
        """
        self._settings, self._cluster = settings, cluster or Cluster(settings, connection())
        if settings.kubernetes_pod_uid:
            self._cluster.sweep()
            self._sweep_folders()

    def resolve(self, arm: Arm) -> Arm:
        settings = self._settings
        if arm.device is Device.CUDA and arm_device(settings) is Device.CPU:
            raise LaunchError("device cuda was asked for, but arms get no GPU in this cluster (kubernetes_device)")
        device = Device.CPU if arm.device is Device.CPU else arm_device(settings)
        all_ranks = settings.kubernetes_ranks_per_node if device is Device.CUDA else CPU_WORLD_SIZE
        world_size = arm.world_size or (all_ranks * arm.nodes if arm.mode.sharded else arm.nodes)
        self._nodes(world_size, arm.nodes)
        kernels = resolve_kernels(arm, device)
        return arm.model_copy(update={"device": device, "world_size": world_size, "kernels": kernels})

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        """Start the arm as `Launcher.start` describes. `devices` are ignored: the cluster chooses the GPUs.

        Raises:
            LaunchError: the cluster refuses the arm or cannot be reached, or the shared volume cannot be written.
        """
        job = self._job(spec, folder, source)
        shared = self._settings.kubernetes_mount / job.subpath
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_spec(spec, shared / "out")
            (folder / LOG).touch()
            if source:
                # Links stay links: the conductor may read files behind them that the arm must not see.
                shutil.copytree(source, shared / "source", symlinks=True, dirs_exist_ok=True)
        except (OSError, shutil.Error) as fault:
            raise LaunchError(f"the volume that arms share cannot be written: {fault}") from fault
        copied = SharedFolder(shared / "out", folder, disk_bytes(self._settings))
        try:
            created = self._cluster.create(job)
        except LaunchError:
            copied.remove()
            raise
        return KubernetesArm(self._cluster, created, copied, self._settings, folder)

    def _job(self, spec: ArmSpec, folder: Path, source: Path | None) -> ArmJob:
        ranks = spec.arm.world_size
        assert ranks is not None, "the arm must be resolved"
        nodes = self._nodes(ranks, spec.arm.nodes)
        name = arm_name(conductor_name(self._settings), folder)
        return ArmJob(
            name=name,
            nodes=nodes,
            ranks=ranks // nodes,
            gpu=spec.arm.device is Device.CUDA,
            subpath=f"{conductor_name(self._settings)}/{name}",
            has_source=source is not None,
            digest=sha256(f"{spec.model_dump_json()}\0{source}".encode()).hexdigest()[:32],
        )

    def _nodes(self, ranks: int, least: int) -> int:
        """The smallest number of nodes, at least `least`, that divides the ranks evenly."""
        most = self._settings.kubernetes_ranks_per_node
        fewest = max(least, math.ceil(ranks / most))
        nodes = next(nodes for nodes in range(fewest, ranks + 1) if ranks % nodes == 0)
        if nodes > self._settings.kubernetes_max_nodes:
            raise LaunchError(
                f"world size {ranks} needs {nodes} nodes with at most {most} ranks each (kubernetes_ranks_per_node), "
                f"more than the {self._settings.kubernetes_max_nodes} that an arm may have (kubernetes_max_nodes)"
            )
        return nodes

    def _sweep_folders(self) -> None:
        """Remove the folders of arms whose conductors have ended from the shared volume."""
        try:
            living = self._cluster.conductors() - {conductor_name(self._settings)}
            self._settings.kubernetes_mount.mkdir(parents=True, exist_ok=True)
            for folder in self._settings.kubernetes_mount.iterdir():
                if folder.name not in living and folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder, ignore_errors=True)
        except FAULTS as fault:
            raise LaunchError(
                f"the folders of earlier conductors cannot be removed: {describe_error(fault)}"
            ) from fault
