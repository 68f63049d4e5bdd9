"""The program of an arm: the arguments of every rank, and the torchrun command that starts the ranks of a node."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from service.contract import ArmSpec
from worker.launch.protocol import SPEC
from worker.launch.rendezvous import SINGLE_NODE


class HasArguments(Protocol):
    """A rendezvous, as far as torchrun's command needs it."""

    @property
    def arguments(self) -> list[str]: ...


def training_program(python: str = sys.executable) -> tuple[str, ...]:
    """The program that every rank runs, without its arguments."""
    return (python, "-u", "-m", "worker.training")


def training_arguments(folder: Path) -> list[str]:
    """The arguments of the program; `folder` is the arm's folder as the ranks see it."""
    return ["--spec", str(folder / SPEC), "--out", str(folder)]


def torchrun_options(
    ranks: int, program: Sequence[str], folder: Path, rendezvous: HasArguments = SINGLE_NODE
) -> list[str]:
    """torchrun's options and program for one node with so many `ranks`; `folder` as the ranks see it."""
    options = [f"--nproc-per-node={ranks}", *rendezvous.arguments, "--max-restarts=0", "--no-python"]
    return [*options, *program, *training_arguments(folder)]


def write_spec(spec: ArmSpec, folder: Path) -> int:
    """Make the arm's folder and write its spec into it. Returns the number of ranks of the arm."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC).write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    assert spec.arm.world_size is not None, "the arm must be resolved"
    return spec.arm.world_size
