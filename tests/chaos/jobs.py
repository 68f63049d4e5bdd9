"""The jobs of a chaos run: comparisons whose verdict is known beforehand."""

import random
from dataclasses import dataclass

from service.contract import Comparison, Dtype, Mode
from tests.service.documents import tiny

# What an arm does, by the last digit of its seed; most jobs pass.
PLANS = ("passed", "passed", "passed", "passed", "passed", "failed", "unsupported", "error", "endless", "poison")
STEPS = 4
BATCH = 4


@dataclass(frozen=True)
class Job:
    """A comparison, the verdict it must get, and when it is cancelled if it is: seconds after it was accepted."""

    key: str
    comparison: Comparison
    verdict: str
    cancel_after: float | None


def plan_of(seed: int) -> str:
    """What the candidate of a comparison with this seed does."""
    return PLANS[seed % len(PLANS)]


def make_jobs(count: int, seed: int, source: str, poison: int) -> list[Job]:
    """Jobs in random order, `poison` of them poisonous, an eighth of them with an Opacus that is checked out."""
    rng = random.Random(seed)
    plans = [rng.randrange(len(PLANS) - 1) for _ in range(count - poison)] + [len(PLANS) - 1] * poison
    rng.shuffle(plans)
    return [_job(number, digit, rng, source) for number, digit in enumerate(plans)]


def _job(number: int, digit: int, rng: random.Random, source: str) -> Job:
    plan = PLANS[digit]
    name = f"{number:04d}-{plan}"
    comparison = tiny(
        name, reference=Mode.NONE, candidate=Mode.NONE, seed=number * len(PLANS) + digit, num_samples=STEPS * BATCH
    )
    # Arms that are alike in all would be reused in each other's place, and these play what their role says.
    changes: dict[str, object] = {"dtype": Dtype.BF16}
    if rng.random() < 1 / 8:
        changes["opacus"] = f"path:{source}"
    candidate = comparison.candidate.model_copy(update=changes)
    comparison = comparison.model_copy(update={"candidate": candidate})
    cancelled = plan == "endless" or (plan != "poison" and rng.random() < 0.05)
    verdict = {"endless": "cancelled", "poison": "error"}.get(plan, plan)
    return Job(name, comparison, verdict, rng.uniform(0, 6) if cancelled else None)
