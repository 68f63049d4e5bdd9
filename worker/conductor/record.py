"""What an attempt leaves in the store: its verdict, gates, findings, the records of its arms, and its plots."""

import logging
from pathlib import Path

from service.artifacts import ArtifactFolder
from service.contract import Verdict
from service.store import ArmResult, Artifact, AttemptResult, Claim, now, one_line
from service.telemetry import span
from worker.conductor.lease import Lease
from worker.runner import Outcome

log = logging.getLogger(__name__)

MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def make_result(claim: Claim, outcome: Outcome, artifacts: ArtifactFolder) -> AttemptResult:
    """The result of an attempt, after its plots have been stored.

    Plots that cannot be stored do not change the verdict, which rests on numbers. The error names the reason.
    """
    error = one_line(outcome.error.message) if outcome.error else None
    try:
        stored = [_store(claim, path, artifacts) for path in outcome.plots]
    except Exception as fault:
        log.exception("%s: the plots cannot be stored", claim.public_id)
        stored, error = [], error or one_line(f"the plots cannot be stored: {fault}")
    return AttemptResult(
        verdict=outcome.verdict,
        error=error,
        gates=outcome.judgement.gates if outcome.judgement else [],
        findings=outcome.judgement.findings if outcome.judgement else [],
        arms={role: ArmResult(arm.record, arm.error, arm.reused_from) for role, arm in outcome.arms.items()},
        artifacts=stored,
    )


def record(claim: Claim, lease: Lease, result: AttemptResult) -> Verdict | None:
    """Write the result with the fencing token; its verdict. None if the lease is lost.

    A result that the store refuses is replaced by an error that says so: the comparison must end.
    """

    def write(result: AttemptResult) -> Verdict | None:
        return lease.finish(lambda session, attempts: attempts.record(claim.token, result, now(session)))

    try:
        with span("record"):
            return write(result)
    except Exception as error:
        log.exception("%s: the result cannot be stored", claim.public_id)
        return write(AttemptResult(Verdict.ERROR, one_line(f"the result cannot be stored: {error}")))


def release(claim: Claim, lease: Lease) -> None:
    """Give the comparison back to the queue. The attempt does not count as lost."""
    lease.finish(lambda session, attempts: attempts.release(claim.token, now(session)))


def lose(claim: Claim, lease: Lease, reason: str, max_attempts: int) -> None:
    """Give the comparison back for other hosts to try, or end it after `max_attempts` lost attempts."""
    log.warning("%s: %s", claim.public_id, reason)
    lease.finish(lambda session, attempts: attempts.lose(claim.token, one_line(reason), now(session), max_attempts))


def _store(claim: Claim, path: Path, artifacts: ArtifactFolder) -> Artifact:
    uri = f"attempts/{claim.attempt_id}/{path.name}"
    size = artifacts.put(path, uri)
    return Artifact(path.name, MEDIA_TYPES.get(path.suffix, "application/octet-stream"), uri, size)
