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
from worker.launch.devices import gpu_names
from worker.launch.environment import scrub, tune
from worker.launch.processes import descendants, kill
from worker.launch.protocol import LOG, Isolation, ResourceLimits, RunningArm
from worker.launch.provenance import Provenance, describe_provenance
from worker.launch.rendezvous import SINGLE_NODE, Rendezvous
from worker.launch.resolve import resolve_on_host
from worker.launch.sandbox.confine import SandboxPlan, plan, private_folders
from worker.launch.torchrun import torchrun_options, training_program, write_spec
from worker.source import package_folder

GRACE_SECONDS = 2.0


class LocalLauncher:
    """Starts torchrun with one process for each rank of the arm, on the GPUs or the cores of this host."""

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        program: Sequence[str] = training_program(),
        isolation: Isolation = Isolation.AUTO,
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008, frozen
        threads: int | None = None,
    ):
        """
        Args:
            environment: arms get the variables of it that `scrub` lets through.
            program: what every rank runs, with the arguments `--spec FILE --out FOLDER`.
            isolation: whether arms are confined to their own files, network and processes.
            limits: the resources that an arm may use.
            threads: the most CPU threads of a rank, unless OMP_NUM_THREADS is set; by default its share of all cores.
        """
        self._environment, self._program = environment, program
        self._isolation, self._limits, self._threads = isolation, limits, threads

    def resolve(self, arm: Arm) -> Arm:
        return resolve_on_host(arm, self._environment)

    def provenance(self, arm: Arm) -> Provenance | None:
        """The software, hardware and environment that an arm on this host runs with."""
        return describe_provenance(arm.device, self._arm_environment(arm, None), self._program)

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        return self.join(spec, folder, source, SINGLE_NODE, devices)

    def join(
        self,
        spec: ArmSpec,
        folder: Path,
        source: Path | None,
        rendezvous: Rendezvous,
        devices: Sequence[int] | None = None,
    ) -> RunningArm:
        """As `start`, for one node of an arm whose other nodes join the same `rendezvous`."""
        ranks = write_spec(spec, folder) // rendezvous.nodes
        scrubbed = self._arm_environment(spec.arm, source, devices, rendezvous)
        # Measuring coverage would write into another folder than the arm's.
        environment = {name: value for name, value in scrubbed.items() if not name.startswith("COVERAGE_")}
        planned = self._plan(environment, folder.resolve(), source, spec.arm.device is Device.CUDA, rendezvous.port)
        environment |= self._private_folders(folder.resolve(), source)
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

    def _private_folders(self, folder: Path, source: Path | None) -> dict[str, str]:
        """The variables that name the folders an arm writes to.

        Arms of the installed Opacus share a cache of compiled kernels. Any other Opacus has a cache for each arm:
        code that can write to a cache decides what every reader of the cache runs.
        """
        if not source:
            # If the cache cannot be made, Triton fails in the arms that need it and names the reason.
            with suppress(OSError):
                self._triton_cache().mkdir(parents=True, exist_ok=True)
        return private_folders(folder) | {
            "TRITON_CACHE_DIR": str(folder / "triton" if source else self._triton_cache())
        }

    def _triton_cache(self) -> Path:
        home = self._environment.get("HOME") or os.path.expanduser("~")
        return Path(self._environment.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache")).resolve()

    def _arm_environment(
        self,
        arm: Arm,
        source: Path | None,
        devices: Sequence[int] | None = None,
        rendezvous: Rendezvous = SINGLE_NODE,
    ) -> dict[str, str]:
        variables = tune(scrub(self._environment), arm, rendezvous, self._threads)
        if devices is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_names(devices, self._environment))
        # With the folder of `worker`: it need not be installed, and the working directory is the arm's folder.
        paths = [source or "", Path(worker.__file__).parents[1], self._environment.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)
        return variables


def _library_folder() -> list[Path]:
    """The folder of Flash Clipping if it is installed from a checkout, as `make` does, outside of the interpreter's."""
    folder = package_folder("flash_clipping").resolve().parent
    return [] if folder.is_relative_to(Path(sys.prefix).resolve()) else [folder]


class LocalArm:
    """A supervised torchrun and the ranks that it started."""

    def __init__(self, agent: "subprocess.Popen[bytes]"):
        self._agent = agent

    def poll(self) -> int | None:
        return self._agent.poll()

    def stop(self) -> None:
        # torchrun starts each rank in a session of its own, so no process group contains them all.
        family = descendants(self._agent.pid)
        if self._agent.poll() is None:
            self._agent.terminate()
        _, alive = psutil.wait_procs(family, timeout=GRACE_SECONDS)
        kill(alive)
        if alive:
            # torchrun waits for ranks that do not end, for longer than a user who cancels should have to.
            self._agent.kill()
        try:
            self._agent.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()
        psutil.wait_procs(alive)
