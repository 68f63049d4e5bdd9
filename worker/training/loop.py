"""The training loop: an `ArmSpec` in, a record out."""

import itertools
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from service.contract import ArmSpec, Mode
from worker.training.data import global_loader, parts_of
from worker.training.oracle import OracleTrainer
from worker.training.private import OpacusTrainer
from worker.training.recorder import CurrentStep, Recorder
from worker.training.trainer import PlainTrainer, Trainer
from worker.training.world import World


def train(spec: ArmSpec, folder: Path, world: World, current: CurrentStep) -> None:
    """Train the arm on this rank and record it into `folder`. Every rank of the world must call it."""
    # fp32 means fp32: no tf32 in any product, whatever the environment's default.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    workload = spec.workload
    torch.manual_seed(workload.seed)
    loader = global_loader(workload)
    trainer = _trainer(spec, world, loader)
    recorder = Recorder(folder, spec, world)
    recorder.start(trainer)
    batches = itertools.chain.from_iterable(itertools.repeat(loader, workload.num_epochs))
    begin = time.perf_counter()
    for step, batch in enumerate(itertools.islice(batches, spec.planned_steps), start=1):
        current.step = step
        parts = parts_of(workload, batch, world.rank, world.size, world.device)
        world.synchronize()
        start = time.perf_counter()
        outcome = trainer.step(parts, len(batch))
        world.synchronize()
        step_time = time.perf_counter() - start - outcome.overhead
        recorder.step(step, len(batch), outcome, trainer, step_time)
        if step == workload.resume_at:
            checkpoint = folder / f"checkpoint-rank{world.rank}.pt"
            trainer.save(checkpoint)
            trainer = _trainer(spec, world, loader)
            trainer.load(checkpoint)
            checkpoint.unlink()
    recorder.end(current.step or 0, trainer, time.perf_counter() - begin)


def _trainer(spec: ArmSpec, world: World, loader: DataLoader[int]) -> Trainer:
    if spec.arm.mode is Mode.NONE:
        return PlainTrainer(spec, world)
    if spec.arm.mode is Mode.ORACLE:
        return OracleTrainer(spec, world)
    return OpacusTrainer(spec, world, loader)
