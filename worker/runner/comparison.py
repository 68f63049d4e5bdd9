"""Runs a comparison from its document to its outcome, with no service around it."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from service.contract import Arm, ArmError, ArmSpec, Comparison, Dtype, Judgement, Mode, Verdict
from service.settings import get_settings
from service.telemetry import span
from worker.checkout import Checkout
from worker.launch import Launcher
from worker.launch.devices import DevicePool
from worker.runner.arm_cache import ArmCache
from worker.runner.follow import ArmOutcome, RunObserver, Stopped
from worker.runner.judging import Judge, judge_apart, prepare_to_judge
from worker.runner.prepare import CannotPrepare, make_checkout, prepare
from worker.runner.scheduler import ArmRunner, Task
from worker.runner.timeouts import UNLIMITED, Timeouts

__all__ = ["ArmOutcome", "Outcome", "RunObserver", "Stopped", "run_comparison"]


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended: `judgement` when every arm ran to its end, otherwise `error`. Arms are by role."""

    verdict: Verdict
    judgement: Judgement | None = None
    arms: dict[str, ArmOutcome] = field(default_factory=dict)
    error: ArmError | None = None
    plots: list[Path] = field(default_factory=list)


def run_comparison(
    comparison: Comparison,
    folder: Path,
    *,
    launcher: Launcher,
    observer: RunObserver,
    stop: threading.Event,
    plots: bool = True,
    checkout: Checkout | None = None,
    limits: Timeouts = UNLIMITED,
    judge: Judge = judge_apart,
    places: DevicePool | None = None,
    kept: ArmCache | None = None,
) -> Outcome:
    """Run reference, candidate and the arms they are checked with, then judge and, if `plots`, draw into `folder`.

    The arm `oracle` takes the first `oracle_steps` steps; there is none where another arm is an oracle, without
    privacy, and with dropout, whose masks no two modes share. `repeat` is the candidate once more, when asked for.
    The oracle has the installed Opacus, whose accountant is all it takes from it. A fault of an arm is an `Outcome`,
    never an exception. Without a `checkout` the settings of this process say where Opacus sources come from.
    Arms run side by side as far as `places` has room, without them one after another; those that are `kept` are not run
    if the comparison allows it. The first that fails ends the others.

    Raises:
        Stopped: `stop` was set; every process has been ended.
    """
    checkout = checkout or make_checkout(get_settings())
    asked = {"reference": comparison.reference, "candidate": comparison.candidate}
    try:
        prepared = prepare(asked, launcher=launcher, checkout=checkout, observer=observer, stop=stop)
    except CannotPrepare as fault:
        return Outcome(Verdict.ERROR, error=fault.error)
    shown = comparison.model_copy(update={role: ready.arm for role, ready in prepared.items()})
    specs = {role: _resolved(launcher, spec) for role, spec in specs_of(shown).items()}
    sources = {role: ready.source for role, ready in prepared.items()}
    sources["repeat"] = sources["candidate"]
    if judge is judge_apart:
        prepare_to_judge()
    tasks = [Task(role, spec, sources.get(role), folder / role, comparison.reuse) for role, spec in specs.items()]
    runner = ArmRunner(launcher=launcher, observer=observer, stop=stop, limits=limits, places=places, kept=kept)
    arms, failed = runner.run(tasks)
    if failed is not None:
        assert failed.error is not None
        return _failed(arms, failed.error, failed.role, failed.spec.arm)
    observer.phase("judging")
    records = {role: outcome.record for role, outcome in arms.items()}
    with span("judge"):
        judgement, drawn = judge(shown, records, folder / "plots" if plots else None, stop)
    return Outcome(judgement.verdict, judgement, arms, None, drawn)


def specs_of(comparison: Comparison) -> dict[str, ArmSpec]:
    """What to run, by role, in order; `run_comparison` says which roles there are."""
    workload, reference, candidate = comparison.workload, comparison.reference, comparison.candidate
    exact = comparison.exact or comparison.bitwise
    specs = {
        "reference": ArmSpec(workload=workload, arm=reference, exact=exact),
        "candidate": ArmSpec(workload=workload, arm=candidate, exact=exact),
    }
    modes = {reference.mode, candidate.mode}
    if comparison.oracle_steps and not modes & {Mode.ORACLE, Mode.NONE} and not workload.model.dropout:
        # Noise is drawn where the reference draws it: generators of other devices give other numbers.
        # With bfloat16 parameters it starts from theirs, rounded.
        dtype = Dtype.BF16_PURE if {reference.dtype, candidate.dtype} == {Dtype.BF16_PURE} else Dtype.FP32
        oracle = Arm(mode=Mode.ORACLE, world_size=1, device=reference.device, dtype=dtype)
        specs["oracle"] = ArmSpec(workload=workload, arm=oracle, exact=exact, num_steps=comparison.oracle_due)
    if comparison.repeat:
        specs["repeat"] = specs["candidate"]
    return specs


def _resolved(launcher: Launcher, spec: ArmSpec) -> ArmSpec:
    return spec.model_copy(update={"arm": launcher.resolve(spec.arm)})


def _failed(arms: dict[str, ArmOutcome], error: ArmError, role: str, arm: Arm) -> Outcome:
    """The outcome when an arm failed. An oracle that did is no verdict on the mode: it can be left out."""
    verdict, message = error.kind.verdict, f"{role} ({arm.mode}): {error.message}"
    if role == "oracle":
        message = f"oracle: {error.message}; compare without it: oracle_steps 0 (--oracle-steps 0)"
        verdict = verdict if verdict is Verdict.CANCELLED else Verdict.ERROR
    return Outcome(verdict, arms=arms, error=error.model_copy(update={"message": message}))
