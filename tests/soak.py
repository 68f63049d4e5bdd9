"""Clean comparisons by the hundred: how many alarm, and how near each gate comes to its limit.

`python -m tests.soak --runs 200` draws comparisons that are right by construction, one a seed, over modes, world
sizes, dtypes and workload fields, runs them, and prints the alarms and, for each gate, the largest share of its limit
that was seen. With `--state FILE` it goes on where it was stopped. Run it from a clone.
"""

import contextlib
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from service.contract import Arm, Comparison, Device, Mode, ModelSpec, Workload
from worker.commands.suite import share_cores
from worker.launch.fork.launcher import ForkLauncher
from worker.runner.suite import Result, run_member

MAX_WORLD_SIZE = 4
DTYPES = ("fp32",) * 6 + ("bf16", "bf16", "bf16_pure", "bf16_mixed")
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_heads": 2, "num_layers": 1, "max_length": 8, "image_size": 8}
FROZEN = {
    "transformer": ("*embedding.weight", "blocks.0.*.weight"),
    "convnet": ("blocks.0.*",),
    "lstm": ("*embedding.weight",),
}


def draw(seed: int, device: Device, ranks: int) -> Comparison:
    """A comparison that must pass: it depends on `seed`, `device` and the largest number of `ranks` alone."""
    dice = random.Random(seed)
    workload = _workload(dice, seed)
    dtype = dice.choice(DTYPES)
    modes = _modes(workload, dtype)
    arms = []
    for _ in range(2):
        mode = dice.choice(modes)
        world_size = 1 if workload.clipping == "adaptive" else dice.randint(1, ranks)
        arms.append(Arm(mode=mode, world_size=world_size, dtype=dtype, device=device))
        if dtype == "bf16_pure":
            # Modes round bfloat16 parameters' gradients differently; a mode at two world sizes must not.
            modes = [mode]
    exact, repeat = dice.random() < 0.2, dice.random() < 0.1
    # Opacus adds gradients of embeddings up with atomics there, in another order each time.
    repeat = repeat and (device is Device.CPU or arms[1].mode.flash)
    return Comparison(
        name=f"seed {seed}", workload=workload, reference=arms[0], candidate=arms[1], oracle_steps=100,
        exact=exact, repeat=repeat,
    )  # fmt: skip


def _modes(workload: Workload, dtype: str) -> list[Mode]:
    """The modes that take this workload: what Opacus lacks is no alarm, and known faults of Opacus are left out."""
    if workload.clipping == "adaptive":
        return [Mode.HOOKS, Mode.FUNCTORCH] if dtype == "fp32" else []  # on CUDA its einsum takes no mixed dtypes
    if workload.model.family == "lstm" and dtype != "fp32":
        return []  # Opacus' grad sampler of RNNLinear takes no mixed dtypes
    if dtype == "bf16_mixed":
        return [Mode.FLASH_FSDP]
    if workload.model.checkpointing:
        return [Mode.FLASH, Mode.FLASH_FSDP]
    modes = [Mode.HOOKS, Mode.FUNCTORCH, Mode.GHOST, Mode.FLASH]
    if workload.model.family != "lstm":
        modes += [Mode.FLASH_FSDP]
        if workload.loss_reduction == "mean":
            modes += [Mode.GHOST_FSDP]
    return modes


def _workload(dice: random.Random, seed: int) -> Workload:
    family = dice.choice(("transformer", "transformer", "convnet", "lstm"))
    head = dice.choice(("classification", "lm")) if family != "convnet" else "classification"
    flat = dice.random() < 0.9
    steps = dice.randint(2, 4)
    model = ModelSpec(
        **SMALL | {"num_layers": dice.randint(1, 2)},
        family=family,
        head=head,
        bias=dice.random() < 0.8,
        causal=dice.random() < 0.3,
        checkpointing=flat and family == "transformer" and dice.random() < 0.1,
        frozen=FROZEN[family] if dice.random() < 0.15 else (),
    )
    fields: dict[str, Any] = {
        "model": model,
        "num_samples": dice.choice((19, 75, 150)),
        "batch_size": dice.choice((2, 7, 8, 13)),
        "seq_len": dice.randint(2, 8),
        "padding": dice.choice((0.0, 0.0, 0.5)) if family == "transformer" else 0.0,
        "ignored": dice.choice((0.0, 0.3)) if head == "lm" else 0.0,
        "sampling": dice.choice(("sequential", "sequential", "poisson")) if flat else "sequential",
        "slices": dice.choice(("even", "even", "uneven", "idle")),
        "virtual_steps": dice.choice((1, 1, 3)) if flat else 1,
        "max_steps": steps,
        "resume_at": dice.randint(1, steps - 1) if dice.random() < 0.15 else None,
        "optimizer": dice.choice(("adam", "adamw", "sgd")),
        "lr": dice.choice((1e-4, 1e-3, 1e-2)),
        "lr_schedule": dice.choice(("constant", "constant", "linear", "cosine")),
        "noise_multiplier": dice.choice((0.0, 0.5, 1.0, 1.5)),
        "noise_decay": dice.choice((1.0, 1.0, 0.7)),
        "max_grad_norm": dice.choice((0.1, 1.0, 2.3, 100.0)),
        "clipping": "flat" if flat else "adaptive",
        "loss_reduction": dice.choice(("mean", "mean", "sum")),
        "seed": seed,
    }
    if fields["optimizer"] == "sgd" and fields["loss_reduction"] == "sum":
        # Nothing divides the update: at a larger rate training diverges, and rounding with it.
        fields["lr"] = 1e-4
    return Workload(**fields)


def comparisons(first: int, device: Device, ranks: int) -> Iterator[tuple[int, Comparison]]:
    """Seeds and what they draw, without those that draw what no mode or contract takes."""
    seed = first
    while True:
        drawn = None
        with contextlib.suppress(IndexError, ValueError):
            drawn = draw(seed, device, ranks)
        if drawn is not None:
            yield seed, drawn
        seed += 1


def line_of(seed: int, result: Result) -> dict[str, Any]:
    """What is kept of a run."""
    judgement = result.outcome.judgement
    comparison = result.comparison
    return {
        "seed": seed,
        "verdict": result.outcome.verdict.value,
        "dtype": comparison.candidate.dtype.value,
        "arms": [f"{arm.mode} × {arm.world_size}" for arm in (comparison.reference, comparison.candidate)],
        "words": result.summary,
        "workload": comparison.workload.model_dump(mode="json", exclude_defaults=True),
        "gates": [
            [gate.metric, gate.subject.value, gate.passed, gate.observed, gate.limit]
            for gate in (judgement.gates if judgement else [])
        ],
    }


def summary(lines: list[dict[str, Any]], command: str) -> str:
    """The table as Markdown."""
    counted = [line for line in lines if line["verdict"] in ("passed", "failed")]
    alarms = [line for line in counted if line["verdict"] == "failed"]
    broken = [line for line in lines if line["verdict"] == "error"]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(line["verdict"] for line in lines).items())
    text = [f"    {command}", "", f"{len(alarms)} alarms in {len(counted)} clean runs ({verdicts}).", ""]
    for line in (*alarms, *broken):
        text.append(
            f"* {line['verdict']}: seed {line['seed']}, {line['dtype']}, {' and '.join(line['arms'])}: {line['words']}"
        )
    text += ["", "| gate | dtype | gates | largest observed | limit there | largest share of its limit | seed |"]
    text += ["|---|---|---|---|---|---|---|"]
    for (metric, dtype), seen in sorted(_by_gate(counted).items()):
        largest = max(seen, key=lambda entry: entry[0])
        share, observed, limit, seed = largest
        text.append(f"| {metric} | {dtype} | {len(seen)} | {observed:.3g} | {limit:.3g} | {share:.3g} | {seed} |")
    return "\n".join(text) + "\n"


def _by_gate(lines: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float, float, int]]]:
    """By metric and dtype: share of the limit, observed, limit, seed. Of a limit of 0 the share is 0 or infinite."""
    found = defaultdict(list)
    for line in lines:
        for metric, _, _, observed, limit in line["gates"]:
            if observed is None:
                continue
            observed, limit = float(observed), float(limit)
            share = observed / limit if limit else (0.0 if observed == 0 else float("inf"))
            found[metric, line["dtype"]].append((share, observed, limit, line["seed"]))
    return found


@click.command()
@click.option("--runs", default=200, show_default=True, help="Clean runs that are judged.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--ranks", type=int, help="Largest world size.  [default: 4, or the GPUs]")
@click.option("--seed-start", default=0, show_default=True)
@click.option("--minutes", type=float, help="Stop after this time.")
@click.option("--jobs", default=2, show_default=True, help="Comparisons at a time.")
@click.option("--state", type=click.Path(path_type=Path), help="File of JSON lines to keep results in and go on from.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table to this file.")
def main(
    runs: int,
    device: str,
    ranks: int | None,
    seed_start: int,
    minutes: float | None,
    jobs: int,
    state: Path | None,
    markdown: Path | None,
) -> None:
    """Run clean comparisons and count the alarms; exit status 1 if there is one, 3 if a run broke."""
    share_cores(jobs)
    lines = [json.loads(text) for text in state.read_text().splitlines()] if state and state.exists() else []
    soak = Soak(runs, minutes, state, lines)
    with tempfile.TemporaryDirectory(prefix="clipwatch-soak-") as folder, ForkLauncher() as launcher:
        chosen = Device(device)
        largest = ranks or (_gpus() if chosen is Device.CUDA else MAX_WORLD_SIZE)
        soak.run(comparisons(seed_start, chosen, largest), Path(folder), launcher, jobs)
    text = summary(soak.lines, f"python -m tests.soak {' '.join(sys.argv[1:])}")
    if markdown:
        markdown.write_text(text, encoding="utf-8")
    print(text)
    verdicts = {line["verdict"] for line in soak.lines}
    sys.exit(1 if "failed" in verdicts else 3 if "error" in verdicts else 0)


class Soak:
    """Runs until enough were judged or the time is up; keeps every line."""

    def __init__(self, runs: int, minutes: float | None, state: Path | None, lines: list[dict[str, Any]]):
        self.runs, self.state, self.lines = runs, state, lines
        self._end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._lock, self._stop = threading.Lock(), threading.Event()

    def run(self, drawn: Iterator[tuple[int, Comparison]], folder: Path, launcher: ForkLauncher, jobs: int) -> None:
        known = {line["seed"] for line in self.lines}

        def work() -> None:
            while (taken := self._next(drawn, known)) is not None:
                seed, comparison = taken
                result = run_member(comparison, folder / str(seed), launcher=launcher, stop=self._stop, plots=False)
                shutil.rmtree(folder / str(seed))
                self._keep(line_of(seed, result))

        with ThreadPoolExecutor(jobs) as threads:
            try:
                for done in [threads.submit(work) for _ in range(jobs)]:
                    done.result()
            except BaseException:
                self._stop.set()
                raise

    def _next(self, drawn: Iterator[tuple[int, Comparison]], known: set[int]) -> tuple[int, Comparison] | None:
        with self._lock:
            judged = sum(line["verdict"] in ("passed", "failed") for line in self.lines)
            if judged >= self.runs or time.monotonic() > self._end or self._stop.is_set():
                return None
            return next(taken for taken in drawn if taken[0] not in known)

    def _keep(self, line: dict[str, Any]) -> None:
        with self._lock:
            self.lines.append(line)
            words = f"{line['verdict']} {line['dtype']} {' and '.join(line['arms'])} {line['words']}"
            print(f"{len(self.lines)} seed {line['seed']}: {words}", file=sys.stderr)
            if self.state:
                with self.state.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def _gpus() -> int:
    import torch

    return min(torch.cuda.device_count(), MAX_WORLD_SIZE)


if __name__ == "__main__":
    main()
