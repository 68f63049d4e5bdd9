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
from worker.launch.docker.container_arm import DockerArm
from worker.launch.docker.engine_client import connect, find_image, in_words, remove
from worker.launch.docker.owner_lock import OwnerLock, is_alive
from worker.launch.protocol import LOG, Isolation, ResourceLimits, RunningArm
from worker.launch.sandbox.confine import CONTAINER, SandboxPlan, private_folders
from worker.launch.torchrun import gpus_for, resolved, scrubbed, torchrun_options, tuned, write_spec

log = logging.getLogger(__name__)

LABEL = "clipwatch"
# Where an arm sees its folder and its Opacus.
ARM, SOURCE = Path("/arm"), Path("/opacus")
# Who runs an arm where the worker is root: nobody that the host knows, as in the image.
STRANGER = 10001
# NCCL and the loader share memory here. Both count as the arm's memory.
SHARED_MEMORY, TEMPORARY = 8 * 2**30, 2**30


class DockerLauncher:
    """One container for each arm: no network, a root file system that is read-only, no capability, not root.

    An arm can write to its own folder and to nothing else that outlives it. The engine must see the worker's folders
    under the names that the worker has for them. Arms that a dead worker of this host has left are ended whenever a
    launcher is made or starts an arm.
    """

    def __init__(
        self,
        image: str,
        environment: Mapping[str, str] = os.environ,
        program: Sequence[str] = ("python3", "-u", "-m", "worker.training"),
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008, frozen
        engine: str = "",
        root: Path | None = None,
        threads: int | None = None,
    ):
        """
        Args:
            image: what is in the container, of the same release as this worker. It is looked up once: a tag that is
                moved later changes no arm of this launcher.
            environment: what arms are started from, scrubbed; nothing of it that names a place.
            program: what every rank runs in the container; it is given `--spec FILE --out FOLDER`.
            limits: what an arm may use.
            engine: its URL; without one DOCKER_HOST or the usual socket.
            threads: CPU threads of each rank, as of `LocalLauncher`.
            root: a folder that workers of this engine have in common; without one that for temporary files.

        Raises:
            LaunchError: the engine does not answer, or has no such image and cannot get it.
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
        """Give up what is still running: the next launcher ends it."""
        self._owner.close()
        self._client.close()

    def resolve(self, arm: Arm) -> Arm:
        return resolved(arm, gpus_for(arm), self._environment.get("TRITON_INTERPRET") == "1")

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        """As the protocol says.

        Raises:
            LaunchError: the engine does not answer, or cannot make such a container.
        """
        self._sweep()
        folder = folder.resolve()
        ranks = write_spec(spec, folder)
        places = {name: str(ARM / Path(path).name) for name, path in private_folders(folder).items()}
        user = _hand_over(folder)
        plan = SandboxPlan(
            Isolation.REQUIRED.value, asdict(self._limits), gpu=spec.arm.device is Device.CUDA, around=list(CONTAINER)
        )
        command = ["python3", "-m", "worker.launch.sandbox.supervisor", json.dumps(asdict(plan))]
        command += torchrun_options(ranks, self._program, ARM)
        gpus = self._gpus(devices) if spec.arm.device is Device.CUDA else []
        with in_words("the container engine cannot start the arm"):
            container = self._create(
                folder,
                command=command,
                environment=self._arm_environment(spec.arm, source, places),
                mounts=self._mounts(folder, source),
                device_requests=gpus,
                user=user,
            )
            try:
                output = container.attach(stdout=True, stderr=True, stream=True, logs=False)
                # Opened before the arm runs: later the name may lead elsewhere.
                file = (folder / LOG).open("wb")
                container.start()
            except BaseException:
                remove(container)
                raise
        return DockerArm(container, folder, self._limits, output, file)

    def _create(self, folder: Path, **given: Any) -> Container:
        """A container that is named after the arm's folder, in place of one that was made for it already."""
        name = f"{folder.parent.name}-{folder.name}"
        arm = {f"{LABEL}.attempt": folder.parent.name, f"{LABEL}.role": folder.name}
        for earlier in self._mine(arm):
            remove(earlier)
        labels = arm | {f"{LABEL}.root": str(self._root), f"{LABEL}.owner": self._owner.name}
        return self._client.containers.create(
            self._image, name=name, labels=labels, entrypoint=[], working_dir=str(ARM), **given, **self._confinement()
        )

    def _confinement(self) -> dict[str, Any]:
        limits = self._limits
        memory = {"mem_limit": limits.memory, "memswap_limit": limits.memory} if limits.memory else {}
        return {
            # The agent is the first process: no other can kill it, and it reaps.
            "init": False,
            "network_mode": "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "pids_limit": limits.processes * limits.threads,
            "tmpfs": {"/tmp": f"size={min(TEMPORARY, limits.disk)},mode=1777"},
            "shm_size": SHARED_MEMORY,
            "ulimits": [Ulimit(name="core", soft=0, hard=0)],
            # Its output is streamed: what the engine kept of it would be one more thing to fill the disk with.
            "log_config": LogConfig(type=LogConfig.types.NONE),
            **memory,
        }

    def _mounts(self, folder: Path, source: Path | None) -> list[Mount]:
        # A bind mount of this type fails where the engine does not see the folder, instead of making an empty one.
        mounts = [Mount(target=str(ARM), source=str(folder), type="bind")]
        if source:
            mounts.append(Mount(target=str(SOURCE), source=str(source.resolve()), type="bind", read_only=True))
        # Where an image has a volume, the engine would make one that can be written to without a limit.
        return mounts + [Mount(target=path, source=None, type="tmpfs", read_only=True) for path in self._image_volumes]

    def _arm_environment(self, arm: Arm, source: Path | None, places: Mapping[str, str]) -> list[str]:
        """NAME=VALUE, and NAME alone for what the image sets and the arm may not have."""
        wanted = scrubbed(self._image_environment) | scrubbed(self._environment, places=False)
        wanted = tuned(wanted, arm, threads=self._threads) | dict(places) | {"TRITON_CACHE_DIR": str(ARM / "triton")}
        # Engines whose default runtime is NVIDIA's give every GPU to a container that does not refuse.
        wanted["NVIDIA_VISIBLE_DEVICES"] = "void"
        if arm.device is Device.CUDA:
            del wanted["NVIDIA_VISIBLE_DEVICES"]
        if source:
            wanted["PYTHONPATH"] = str(SOURCE)
        dropped = set(self._image_environment) - set(wanted)
        return [f"{name}={value}" for name, value in wanted.items()] + sorted(dropped)

    def _gpus(self, devices: Sequence[int] | None) -> list[DeviceRequest]:
        """The GPUs of these indices among those that this worker sees; without indices all of them."""
        capabilities = [["gpu", "compute", "utility"]]
        listed = self._environment.get("CUDA_VISIBLE_DEVICES")
        chosen = listed.split(",") if listed else None
        if devices is not None:
            chosen = [chosen[index] if chosen else str(index) for index in devices]
        which = {"count": -1} if chosen is None else {"device_ids": chosen}
        return [DeviceRequest(driver="nvidia", capabilities=capabilities, **which)]

    def _sweep(self) -> None:
        """Ends the arms of workers that have gone."""
        with in_words("the container engine does not list or end what was left behind"):
            for container in self._mine():
                if not is_alive(self._root, container.labels[f"{LABEL}.owner"]):
                    log.warning("ending %s, left behind by a worker that has gone", container.name)
                    remove(container)

    def _mine(self, labels: Mapping[str, str] = MappingProxyType({})) -> list[Container]:
        """The containers with these labels of all workers that share this one's root."""
        wanted = {f"{LABEL}.root": str(self._root)} | dict(labels)
        found: list[Container] = self._client.containers.list(
            all=True, filters={"label": [f"{name}={value}" for name, value in wanted.items()]}, ignore_removed=True
        )
        return found


def _hand_over(folder: Path) -> str:
    """Makes the arm's folder that of the user who runs it; that user, for the engine."""
    if os.getuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    for path in (folder, *folder.iterdir()):
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return f"{STRANGER}:{STRANGER}"
