"""Runs each arm in a container of its own, on the container engine of this host."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from docker.models.containers import Container
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from service.contract import Arm, ArmSpec, Device
from worker.launch.devices import gpu_names
from worker.launch.docker.container_arm import DockerArm
from worker.launch.docker.engine_client import connect, explained, find_image, remove
from worker.launch.docker.owner_lock import OwnerLock, is_alive
from worker.launch.environment import scrub, tune
from worker.launch.protocol import ARM_MOUNT, LOG, SOURCE_MOUNT, Isolation, ResourceLimits, RunningArm
from worker.launch.resolve import resolve_on_host
from worker.launch.sandbox.confine import CONTAINER, SandboxPlan, private_folders
from worker.launch.torchrun import torchrun_options, training_program, write_spec

log = logging.getLogger(__name__)

LABEL = "clipwatch"
# The user who runs an arm if the worker is root: that of the image, which the host does not know.
UNPRIVILEGED_USER = 10001
# Bytes of /dev/shm, which NCCL and the loader use, and of /tmp. Both count as the arm's memory.
SHARED_MEMORY, TEMPORARY = 8 * 2**30, 2**30


class DockerLauncher:
    """One container for each arm: no network, a root file system that is read-only, no capability, not root.

    The only files of an arm that outlive it are those in its folder. The engine must see the worker's folders under the
    same paths as the worker. Arms that an ended worker of this host has left behind are ended whenever a launcher is
    made or starts an arm.
    """

    def __init__(
        self,
        image: str,
        environment: Mapping[str, str] = os.environ,
        program: Sequence[str] = training_program("python3"),
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008, frozen
        engine: str = "",
        root: Path | None = None,
        threads: int | None = None,
    ):
        """
        Args:
            image: of the containers, of the same release as this worker. It is looked up once: moving the tag later
                changes no arm of this launcher.
            environment: arms get the variables of it that `scrub` lets through, without those that name places.
            program: what every rank runs in the container, with the arguments `--spec FILE --out FOLDER`.
            limits: the resources that an arm may use.
            engine: the engine's URL; by default DOCKER_HOST or the usual socket.
            root: a folder that all workers of this engine share; by default that for temporary files.
            threads: the most CPU threads of a rank, as for `LocalLauncher`.

        Raises:
            LaunchError: the engine does not answer, or does not have the image and cannot pull it.
        """
        self._environment, self._program = environment, program
        self._limits, self._threads = limits, threads
        self._root = (root or Path(tempfile.gettempdir())).resolve()
        self._client = connect(engine)
        found = find_image(engine, image)
        self._image, config = found.id, found.attrs["Config"]
        self._image_environment = dict(line.split("=", 1) for line in config["Env"] or [])
        self._image_volumes = list(config["Volumes"] or {})
        self._owner = OwnerLock(self._root)
        self._sweep()

    def close(self) -> None:
        """Give up all arms. The next launcher on this host ends those that still run."""
        self._owner.close()
        self._client.close()

    def resolve(self, arm: Arm) -> Arm:
        return resolve_on_host(arm, self._environment)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        """Start the arm as `Launcher.start` describes.

        Raises:
            LaunchError: the engine does not answer, or cannot make the container.
        """
        self._sweep()
        folder = folder.resolve()
        ranks = write_spec(spec, folder)
        private = {name: str(ARM_MOUNT / Path(path).name) for name, path in private_folders(folder).items()}
        user = _hand_over(folder)
        plan = SandboxPlan(
            Isolation.REQUIRED.value, asdict(self._limits), gpu=spec.arm.device is Device.CUDA, around=list(CONTAINER)
        )
        command = ["python3", "-m", "worker.launch.sandbox.supervisor", json.dumps(asdict(plan))]
        command += torchrun_options(ranks, self._program, ARM_MOUNT)
        gpus = self._gpus(devices) if spec.arm.device is Device.CUDA else []
        with explained("the container engine cannot start the arm"):
            container = self._create(
                folder,
                command=command,
                environment=self._arm_environment(spec.arm, source, private),
                mounts=self._mounts(folder, source),
                device_requests=gpus,
                user=user,
            )
            try:
                output = container.attach(stdout=True, stderr=True, stream=True, logs=False)
                # Opened before the arm runs: later the arm may have put a link there.
                file = (folder / LOG).open("wb")
                container.start()
            except BaseException:
                remove(container)
                raise
        return DockerArm(container, folder, self._limits, output, file)

    def _create(self, folder: Path, **given: Any) -> Container:
        """A container that is named after the arm's folder. An earlier one of the same arm is removed."""
        name = f"{folder.parent.name}-{folder.name}"
        arm = {f"{LABEL}.attempt": folder.parent.name, f"{LABEL}.role": folder.name}
        for earlier in self._find(arm):
            remove(earlier)
        labels = arm | {f"{LABEL}.root": str(self._root), f"{LABEL}.owner": self._owner.name}
        return self._client.containers.create(
            self._image,
            name=name,
            labels=labels,
            entrypoint=[],
            working_dir=str(ARM_MOUNT),
            **given,
            **self._confinement(),
        )

    def _confinement(self) -> dict[str, Any]:
        limits = self._limits
        memory = {"mem_limit": limits.memory, "memswap_limit": limits.memory} if limits.memory else {}
        return {
            # The supervisor is process 1: no other process can kill it, and it reaps all others.
            "init": False,
            "network_mode": "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "pids_limit": limits.processes * limits.threads,
            "tmpfs": {"/tmp": f"size={min(TEMPORARY, limits.disk)},mode=1777"},
            "shm_size": SHARED_MEMORY,
            "ulimits": [Ulimit(name="core", soft=0, hard=0)],
            # The output is streamed. A copy kept by the engine could fill the disk of the host.
            "log_config": LogConfig(type=LogConfig.types.NONE),
            **memory,
        }

    def _mounts(self, folder: Path, source: Path | None) -> list[Mount]:
        # If the engine does not see the folder, this type of bind mount fails. Others would make an empty folder.
        mounts = [Mount(target=str(ARM_MOUNT), source=str(folder), type="bind")]
        if source:
            mounts.append(Mount(target=str(SOURCE_MOUNT), source=str(source.resolve()), type="bind", read_only=True))
        # For a volume that the image declares, the engine would make one that an arm could fill without limit.
        return mounts + [Mount(target=path, source=None, type="tmpfs", read_only=True) for path in self._image_volumes]

    def _arm_environment(self, arm: Arm, source: Path | None, private: Mapping[str, str]) -> list[str]:
        """NAME=VALUE for each variable, and NAME alone to remove a variable that the image sets."""
        wanted = scrub(self._image_environment) | scrub(self._environment, places=False)
        wanted = (
            tune(wanted, arm, threads=self._threads) | dict(private) | {"TRITON_CACHE_DIR": str(ARM_MOUNT / "triton")}
        )
        # An engine whose default runtime is NVIDIA's gives every GPU to a container that does not set this.
        wanted["NVIDIA_VISIBLE_DEVICES"] = "void"
        if arm.device is Device.CUDA:
            del wanted["NVIDIA_VISIBLE_DEVICES"]
        if source:
            wanted["PYTHONPATH"] = str(SOURCE_MOUNT)
        dropped = set(self._image_environment) - set(wanted)
        return [f"{name}={value}" for name, value in wanted.items()] + sorted(dropped)

    def _gpus(self, devices: Sequence[int] | None) -> list[DeviceRequest]:
        """Request the GPUs of these indices among those that this worker sees, or all of them."""
        capabilities = [["gpu", "compute", "utility"]]
        listed = self._environment.get("CUDA_VISIBLE_DEVICES")
        if devices is not None:
            which: dict[str, Any] = {"device_ids": gpu_names(devices, self._environment)}
        else:
            which = {"device_ids": listed.split(",")} if listed else {"count": -1}
        return [DeviceRequest(driver="nvidia", capabilities=capabilities, **which)]

    def _sweep(self) -> None:
        """End the arms of workers that have ended."""
        with explained("the container engine cannot list or end the arms of earlier workers"):
            for container in self._find():
                if not is_alive(self._root, container.labels[f"{LABEL}.owner"]):
                    log.warning("ending %s: its worker has ended", container.name)
                    remove(container)

    def _find(self, labels: Mapping[str, str] = MappingProxyType({})) -> list[Container]:
        """The containers with these labels, of all workers that share this root folder."""
        wanted = {f"{LABEL}.root": str(self._root)} | dict(labels)
        found: list[Container] = self._client.containers.list(
            all=True, filters={"label": [f"{name}={value}" for name, value in wanted.items()]}, ignore_removed=True
        )
        return found


def _hand_over(folder: Path) -> str:
    """Give the arm's folder to the user who runs the arm. Returns that user as the engine wants it."""
    if os.getuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    for path in (folder, *folder.iterdir()):
        os.chown(path, UNPRIVILEGED_USER, UNPRIVILEGED_USER, follow_symlinks=False)
    return f"{UNPRIVILEGED_USER}:{UNPRIVILEGED_USER}"
