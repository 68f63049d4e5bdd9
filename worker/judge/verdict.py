"""The verdict, and the gates and findings that it rests on."""

from service.contract import ArmRecord, Comparison, Judgement, Subject, Verdict
from worker.judge.findings import findings
from worker.judge.gates import RULES
from worker.judge.pair import RecordPair


def judge(
    comparison: Comparison,
    reference: ArmRecord,
    candidate: ArmRecord,
    *,
    oracle: ArmRecord | None = None,
    repeat: ArmRecord | None = None,
) -> Judgement:
    """Judge the arms of a comparison: the verdict is passed if and only if every gate passed.

    Limits are inclusive, and differences are taken in float64. Metrics of a step are compared at the steps that both
    records have; a missing step fails the gate `steps`. Without privacy (mode `none`) there are no per-sample norms, no
    noise and no ε, and their gates are left out. The gate of clip factors is left out where neither mode shows them.

    Args:
        oracle: the first steps of the workload; without it no gate holds an arm to the oracle.
        repeat: a second run of the candidate; without it no gate holds the candidate to its repetition.
    """
    pairs = {
        Subject.COMPARISON: RecordPair(comparison, Subject.COMPARISON, reference, candidate, oracle),
        Subject.REFERENCE: RecordPair(comparison, Subject.REFERENCE, oracle or ArmRecord(), reference, oracle),
        Subject.CANDIDATE: RecordPair(comparison, Subject.CANDIDATE, oracle or ArmRecord(), candidate, oracle, repeat),
    }
    results = [rule.judge(pair) for pair in pairs.values() for rule in RULES if rule.applies(pair)]
    gates = [result.gate for result in results]
    verdict = Verdict.PASSED if all(gate.passed for gate in gates) else Verdict.FAILED
    return Judgement(verdict=verdict, gates=gates, findings=findings(results, pairs))
