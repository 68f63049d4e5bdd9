"""Looks up gates of a judgement."""

from service.contract import Gate, Judgement, Subject


def gate_of(judgement: Judgement, metric: str, subject: Subject = Subject.COMPARISON) -> Gate:
    return next(gate for gate in judgement.gates if (gate.metric, gate.subject) == (metric, subject))


def failed(judgement: Judgement) -> set[tuple[str, str]]:
    return {(gate.metric, gate.subject.value) for gate in judgement.gates if not gate.passed}
