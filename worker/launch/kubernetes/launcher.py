"""Runs an arm as pods of a cluster."""

import math
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from service.contract import Arm, ArmSpec, Device, Kernels
from worker.launch.kubernetes.cluster import FAULTS, Cluster, connection, said
from worker.launch.kubernetes.job_arm import KubernetesArm
from worker.launch.kubernetes.objects import ArmJob, name_of
from worker.launch.kubernetes.options import ClusterOptions
from worker.launch.kubernetes.shared_folder import SharedFolder
from worker.launch.protocol import LOG, SPEC, LaunchError, RunningArm

CPU_WORLD_SIZE = 2


class KubernetesLauncher:
    """A JobSet for each arm, with as many pods as its ranks need nodes.

    What a conductor's pod left behind when it was killed is removed when its successor begins: the arms by the
    cluster, because the pod owns them, and by name if only its container was restarted; the folders here.
    """

    def __init__(self, options: ClusterOptions, cluster: Cluster | None = None):
        """
        Raises:
            LaunchError: there is no cluster, or it refuses.
        """
        self._options, self._cluster = options, cluster or Cluster(options, connection())
        if options.conductor_uid:
            self._cluster.sweep()
            self._sweep_folders()

    def resolve(self, arm: Arm) -> Arm:
        options = self._options
        if arm.device is Device.CUDA and options.device is Device.CPU:
            raise LaunchError("device cuda was asked for, but arms get no GPU in this cluster (kubernetes_device)")
        device = Device.CPU if arm.device is Device.CPU else options.device
        all_ranks = options.ranks_per_node if device is Device.CUDA else CPU_WORLD_SIZE
        world_size = arm.world_size or (all_ranks * arm.nodes if arm.mode.sharded else arm.nodes)
        self._nodes(world_size, arm.nodes)
        kernels = arm.kernels
        if kernels is Kernels.AUTO:
            kernels = Kernels.TRITON if device is Device.CUDA else Kernels.TORCH
        if kernels is Kernels.TRITON and device is Device.CPU and arm.mode.flash:
            raise LaunchError("kernels triton need a GPU; on the CPU ask for kernels torch")
        return arm.model_copy(update={"device": device, "world_size": world_size, "kernels": kernels})

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        """As the protocol says. `devices` are of the worker's host and mean nothing here: the cluster gives GPUs.

        Raises:
            LaunchError: the cluster refuses the arm or cannot be reached, or the shared volume cannot be written.
        """
        job = self._job(spec, folder, source)
        shared = self._options.mount / job.subpath
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (shared / "out").mkdir(parents=True, exist_ok=True)
            (shared / "out" / SPEC).write_text(spec.model_dump_json(indent=2), encoding="utf-8")
            (folder / LOG).touch()
            if source:
                # Links as links: followed here, they would show the arm what only the conductor may read.
                shutil.copytree(source, shared / "source", symlinks=True, dirs_exist_ok=True)
        except (OSError, shutil.Error) as fault:
            raise LaunchError(f"the volume that arms share cannot be written: {fault}") from fault
        mirror = SharedFolder(shared / "out", folder, self._options.disk)
        try:
            created = self._cluster.create(job)
        except LaunchError:
            mirror.remove()
            raise
        return KubernetesArm(self._cluster, created, mirror, self._options, folder)

    def _job(self, spec: ArmSpec, folder: Path, source: Path | None) -> ArmJob:
        ranks = spec.arm.world_size
        assert ranks is not None, "the arm must be resolved"
        nodes = self._nodes(ranks, spec.arm.nodes)
        name = name_of(self._options.conductor, folder)
        return ArmJob(
            name=name,
            nodes=nodes,
            ranks=ranks // nodes,
            gpu=spec.arm.device is Device.CUDA,
            subpath=f"{self._options.conductor}/{name}",
            has_source=source is not None,
            digest=sha256(f"{spec.model_dump_json()}\0{source}".encode()).hexdigest()[:32],
        )

    def _nodes(self, ranks: int, least: int) -> int:
        """The fewest nodes, but at least so many, that share the ranks evenly."""
        most = self._options.ranks_per_node
        fewest = max(least, math.ceil(ranks / most))
        nodes = next(nodes for nodes in range(fewest, ranks + 1) if ranks % nodes == 0)
        if nodes > self._options.max_nodes:
            raise LaunchError(
                f"world size {ranks} needs {nodes} nodes with at most {most} ranks each (kubernetes_ranks_per_node), "
                f"more than the {self._options.max_nodes} that an arm may have (kubernetes_max_nodes)"
            )
        return nodes

    def _sweep_folders(self) -> None:
        """Removes what arms of conductors that are gone left on the volume."""
        try:
            living = self._cluster.conductors() - {self._options.conductor}
            self._options.mount.mkdir(parents=True, exist_ok=True)
            for folder in self._options.mount.iterdir():
                if folder.name not in living and folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder, ignore_errors=True)
        except FAULTS as fault:
            raise LaunchError(f"what earlier conductors left cannot be removed: {said(fault)}") from fault
