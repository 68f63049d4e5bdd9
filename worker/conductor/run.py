"""Runs a comparison from its document to its outcome, with no service around it."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from service.contract import Arm, ArmError, ArmSpec, Comparison, ErrorKind, Judgement, Verdict
from worker.conductor.arm import ArmOutcome, Observer, Stopped, run_arm
from worker.judge import draw, judge
from worker.launch import Launcher, LaunchError

__all__ = ["ArmOutcome", "Observer", "Outcome", "Stopped", "run_comparison"]


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended: `judgement` when both arms ran to their end, otherwise `error`."""

    verdict: Verdict
    judgement: Judgement | None = None
    arms: dict[str, ArmOutcome] = field(default_factory=dict)
    error: ArmError | None = None
    plots: list[Path] = field(default_factory=list)


def run_comparison(
    comparison: Comparison, folder: Path, *, launcher: Launcher, observer: Observer, stop: threading.Event
) -> Outcome:
    """Run reference, then candidate, then judge and draw into `folder`.

    A fault of an arm is an `Outcome`, never an exception.

    Raises:
        Stopped: `stop` was set; every process has been ended.
    """
    roles: dict[str, Arm] = {"reference": comparison.reference, "candidate": comparison.candidate}
    try:
        resolved = {role: launcher.resolve(arm) for role, arm in roles.items()}
    except LaunchError as fault:
        return Outcome(Verdict.ERROR, error=ArmError(kind=ErrorKind.DEVICE, message=str(fault)))
    arms: dict[str, ArmOutcome] = {}
    for role, arm in resolved.items():
        observer.phase(role)
        spec = ArmSpec(workload=comparison.workload, arm=arm)
        outcome = run_arm(role, spec, folder / role, launcher=launcher, observer=observer, stop=stop)
        arms[role] = outcome
        if outcome.error is not None:
            named = outcome.error.model_copy(update={"message": f"{role} ({arm.mode}): {outcome.error.message}"})
            return Outcome(outcome.error.kind.verdict, arms=arms, error=named)
    observer.phase("judging")
    shown = comparison.model_copy(update=resolved)
    reference, candidate = arms["reference"].record, arms["candidate"].record
    judgement = judge(shown, reference, candidate)
    plots = draw(shown, reference, candidate, folder / "plots")
    return Outcome(judgement.verdict, judgement, arms, None, plots)
