"""The program torchrun starts on every rank: `python -m worker.training --spec FILE --out FOLDER`."""

import argparse
import os
import sys
import traceback
from pathlib import Path

import torch

from service.contract import ArmError, ArmSpec, ErrorKind
from worker import error_files
from worker.lifetime import die_with_parent
from worker.training.recorder import CurrentStep
from worker.training.trainer import Unsupported
from worker.training.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.training", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="an ArmSpec as JSON")
    parser.add_argument("--out", type=Path, required=True, help="an existing folder for the record")
    arguments = parser.parse_args()
    die_with_parent()
    rank, current = int(os.environ["RANK"]), CurrentStep()
    try:
        # Here and not above: an Opacus that cannot be imported is a failure to be described like any other.
        from worker.training.loop import train  # noqa: PLC0415

        spec = ArmSpec.model_validate_json(arguments.spec.read_bytes())
        world = World.join(spec.arm.device, spec.collective_seconds)
        train(spec, arguments.out, world, current)
    except Exception as error:
        traceback.print_exc()
        error_files.write(arguments.out, rank, _describe(error, rank, current.step))
        return 1
    try:
        world.leave()
    except Exception:
        # The record is complete. That a peer left first is no failure of the arm.
        traceback.print_exc()
    return 0


def _describe(error: Exception, rank: int, step: int | None) -> ArmError:
    kind, message = ErrorKind.CRASH, f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, Unsupported):
        kind, message = ErrorKind.UNSUPPORTED, str(error)
    elif isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        kind = ErrorKind.OUT_OF_MEMORY
        message = "out of memory: lower batch_size, seq_len, hidden_size or vocab_size, or use more ranks"
    return ArmError(kind=kind, message=message, rank=rank, step=step, traceback=traceback.format_exc())


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All files are written. A thread of gloo may still hold tensors. If it frees them while the interpreter finalizes,
    # it aborts the process (https://github.com/pytorch/pytorch/pull/179291), and the arm counts as crashed; seen once.
    os._exit(status)
