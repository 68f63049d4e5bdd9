"""Runs a comparison from its document to its outcome, without a store."""

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
from worker.runner.scheduler import ArmTask, Scheduler
from worker.runner.timeouts import UNLIMITED, Timeouts

__all__ = ["ArmOutcome", "Outcome", "RunObserver", "Stopped", "run_comparison"]


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended: with a `judgement` if every arm ran to its end, else an `error`. Arms are by role."""

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
    timeouts: Timeouts = UNLIMITED,
    judge: Judge = judge_apart,
    device_pool: DevicePool | None = None,
    cache: ArmCache | None = None,
) -> Outcome:
    """Run the reference, the candidate and the arms that they are checked with; then judge the records.

    The arm `oracle` takes the first `oracle_steps` steps. It is left out where another arm is an oracle, where there is
    no privacy, and with dropout, because no two modes draw the same masks. The arm `repeat` runs the candidate again,
    if the comparison asks for it. An arm that fails gives an `Outcome` with an error, never an exception, and ends the
    other arms.

    Args:
        comparison: what to run.
        folder: holds a folder for each arm, named after its role, and `plots`.
        launcher: starts the arms.
        observer: gets progress and logs.
        stop: ends the comparison when it is set.
        plots: whether to draw the plots.
        checkout: where Opacus sources come from; by default as the settings of this process say.
        timeouts: of each arm.
        judge: makes the judgement.
        device_pool: arms run side by side as far as it has devices. Without one they run one after another.
        cache: arms in it are not run, if the comparison allows their reuse.

    Raises:
        Stopped: `stop` was set; every process has been ended.
        JudgingFailed: the judge raised an exception or was killed.
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
    tasks = [ArmTask(role, spec, sources.get(role), folder / role, comparison.reuse) for role, spec in specs.items()]
    scheduler = Scheduler(
        launcher=launcher, observer=observer, stop=stop, timeouts=timeouts, device_pool=device_pool, cache=cache
    )
    arms, failed = scheduler.run(tasks)
    if failed is not None:
        assert failed.error is not None
        return _failed(arms, failed.error, failed.role, failed.spec.arm)
    observer.phase("judging")
    records = {role: outcome.record for role, outcome in arms.items()}
    with span("judge"):
        judgement, drawn = judge(shown, records, folder / "plots" if plots else None, stop)
    return Outcome(judgement.verdict, judgement, arms, None, drawn)


def specs_of(comparison: Comparison) -> dict[str, ArmSpec]:
    """The arms to run, by role, in order. `run_comparison` says when there are an oracle and a repeated arm."""
    workload, reference, candidate = comparison.workload, comparison.reference, comparison.candidate
    exact = comparison.exact or comparison.bitwise
    specs = {
        "reference": ArmSpec(workload=workload, arm=reference, exact=exact),
        "candidate": ArmSpec(workload=workload, arm=candidate, exact=exact),
    }
    modes = {reference.mode, candidate.mode}
    if comparison.oracle_steps and not modes & {Mode.ORACLE, Mode.NONE} and not workload.model.dropout:
        # The oracle draws the noise on the device of the reference: generators of other devices give other numbers.
        # If both arms have bfloat16 parameters, the oracle starts from the same rounded values.
        dtype = Dtype.BF16_PURE if {reference.dtype, candidate.dtype} == {Dtype.BF16_PURE} else Dtype.FP32
        oracle = Arm(mode=Mode.ORACLE, world_size=1, device=reference.device, dtype=dtype)
        specs["oracle"] = ArmSpec(workload=workload, arm=oracle, exact=exact, num_steps=comparison.oracle_due)
    if comparison.repeat:
        specs["repeat"] = specs["candidate"]
    return specs


def _resolved(launcher: Launcher, spec: ArmSpec) -> ArmSpec:
    return spec.model_copy(update={"arm": launcher.resolve(spec.arm)})


def _failed(arms: dict[str, ArmOutcome], error: ArmError, role: str, arm: Arm) -> Outcome:
    """The outcome when an arm failed. A failed oracle is an error: it says nothing about the modes under test."""
    verdict, message = error.kind.verdict, f"{role} ({arm.mode}): {error.message}"
    if role == "oracle":
        message = f"oracle: {error.message}; compare without it: oracle_steps 0 (--oracle-steps 0)"
        verdict = verdict if verdict is Verdict.CANCELLED else Verdict.ERROR
    return Outcome(verdict, arms=arms, error=error.model_copy(update={"message": message}))
