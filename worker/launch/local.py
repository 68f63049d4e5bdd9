"""Runs an arm with torchrun on this host."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

import worker
from service.contract import Arm, ArmSpec, Device
from worker.launch.protocol import LOG, Isolation, ResourceLimits, RunningArm
from worker.launch.provenance import Provenance, describe_provenance
from worker.launch.rendezvous import ALONE, Rendezvous
from worker.launch.sandbox.confine import SandboxPlan, plan, private_folders
from worker.launch.torchrun import gpus_for, resolved, scrubbed, torchrun_options, tuned, write_spec
from worker.source import package_folder

GRACE_SECONDS = 2.0


class LocalLauncher:
    """torchrun with as many processes as the arm has ranks, on the GPUs or the cores of this host."""

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        program: Sequence[str] = (sys.executable, "-u", "-m", "worker.training"),
        isolation: Isolation = Isolation.AUTO,
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008, frozen
        threads: int | None = None,
    ):
        """
        Args:
            environment: what arms are started from, scrubbed.
            program: what every rank runs; it is given `--spec FILE --out FOLDER`.
            isolation: whether arms are kept from what is not theirs.
            limits: what an arm may use.
            threads: CPU threads of each rank, unless OMP_NUM_THREADS says; all cores by default, shared by the ranks.
        """
        self._environment, self._program = environment, program
        self._isolation, self._limits, self._threads = isolation, limits, threads

    def resolve(self, arm: Arm) -> Arm:
        return resolved(arm, gpus_for(arm), self._interprets())

    def provenance(self, arm: Arm) -> Provenance | None:
        """What an arm here runs with, beside its Opacus."""
        return describe_provenance(arm.device, self._scrubbed(arm, None), self._program)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        return self.join(spec, folder, source, ALONE, devices)

    def join(
        self,
        spec: ArmSpec,
        folder: Path,
        source: Path | None,
        rendezvous: Rendezvous,
        devices: Sequence[int] | None = None,
    ) -> RunningArm:
        """As `start`, for this host's part of an arm whose other parts come to the same `rendezvous`."""
        ranks = write_spec(spec, folder) // rendezvous.nodes
        kept = self._scrubbed(spec.arm, source, devices, rendezvous)
        # Measuring coverage writes to another folder than the arm's.
        environment = {name: value for name, value in kept.items() if not name.startswith("COVERAGE_")}
        planned = self._plan(environment, folder.resolve(), source, spec.arm.device is Device.CUDA, rendezvous.port)
        environment |= self._own(environment, folder.resolve(), source)
        command = [sys.executable, "-m", "worker.launch.sandbox.supervisor", json.dumps(asdict(planned))]
        command += torchrun_options(ranks, self._program, folder, rendezvous)
        with (folder / LOG).open("wb") as log:
            return LocalArm(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _plan(
        self, environment: Mapping[str, str], folder: Path, source: Path | None, gpu: bool, port: int | None
    ) -> SandboxPlan:
        path = [Path(entry).resolve() for entry in environment["PYTHONPATH"].split(os.pathsep)]
        path += _library_folder()
        programs = [Path(part).resolve().parent for part in self._program[1:] if Path(part).is_file()]
        return plan(
            self._isolation,
            self._limits,
            path,
            [*programs, *([source] if source else [])],
            [folder, *([] if source else [self._triton_cache()])],
            gpu,
            port,
        )

    def _own(self, environment: Mapping[str, str], folder: Path, source: Path | None) -> dict[str, str]:
        """Where an arm keeps what is its own. Arms of the installed Opacus share the cache of compiled kernels.

        Whoever can write to a cache decides what all who read it run: an Opacus from elsewhere has one for each arm.
        """
        own = private_folders(folder)
        if not source:
            # Where it cannot be made, Triton says so to those arms that need it.
            with suppress(OSError):
                self._triton_cache().mkdir(parents=True, exist_ok=True)
        return own | {"TRITON_CACHE_DIR": str(folder / "triton" if source else self._triton_cache())}

    def _triton_cache(self) -> Path:
        home = self._environment.get("HOME") or os.path.expanduser("~")
        return Path(self._environment.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache")).resolve()

    def _interprets(self) -> bool:
        return self._environment.get("TRITON_INTERPRET") == "1"

    def _scrubbed(
        self,
        arm: Arm,
        source: Path | None,
        devices: Sequence[int] | None = None,
        rendezvous: Rendezvous = ALONE,
    ) -> dict[str, str]:
        kept = tuned(scrubbed(self._environment), arm, rendezvous, self._threads)
        if devices is not None:
            kept["CUDA_VISIBLE_DEVICES"] = ",".join(self._device_name(index) for index in devices)
        # Where `worker` lies, so that it need not be installed; the arm's folder is its working directory.
        paths = [source or "", Path(worker.__file__).parents[1], self._environment.get("PYTHONPATH", "")]
        kept["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)
        return kept

    def _device_name(self, index: int) -> str:
        """What CUDA calls the GPU that is the `index`th here: of those that are visible, if not all are."""
        visible = self._environment.get("CUDA_VISIBLE_DEVICES")
        return str(index) if visible is None else visible.split(",")[index].strip()


def _library_folder() -> list[Path]:
    """The folder of Flash Clipping if it is installed from a checkout, as `make` does, outside of the interpreter's."""
    folder = package_folder("flash_clipping").resolve().parent
    return [] if folder.is_relative_to(Path(sys.prefix).resolve()) else [folder]


class LocalArm:
    """torchrun's agent and the ranks it started."""

    def __init__(self, agent: "subprocess.Popen[bytes]"):
        self._agent = agent

    def poll(self) -> int | None:
        return self._agent.poll()

    def stop(self) -> None:
        # torchrun starts each rank in a session of its own, so no process group holds them all.
        try:
            family = psutil.Process(self._agent.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        if self._agent.poll() is None:
            self._agent.terminate()
        _, alive = psutil.wait_procs(family, timeout=GRACE_SECONDS)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if alive:
            # torchrun waits for ranks that do not go for longer than anybody who cancels should.
            self._agent.kill()
        try:
            self._agent.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()
        psutil.wait_procs(alive)
