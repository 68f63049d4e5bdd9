"""The judge, the findings, the pages and the documents know the same gates, and the same plots."""

import re
from pathlib import Path

import pytest

from service.contract import GATES, PLOTS, Chain, Gate, HeldTo, Subject
from tests.worker.judge.records import comparison, record, trained
from worker.judge import draw, judge
from worker.judge.findings import findings
from worker.judge.gates import RULES
from worker.judge.pair import GateResult, RecordPair

ROOT = Path(__file__).parents[3]
SUBJECTS = {
    HeldTo.REFERENCE: {Subject.COMPARISON},
    HeldTo.ORACLE: {Subject.REFERENCE, Subject.CANDIDATE},
    HeldTo.THEORY: {Subject.REFERENCE, Subject.CANDIDATE},
    HeldTo.REPETITION: {Subject.CANDIDATE},
}


def rows(document: str) -> dict[str, str]:
    """The first Markdown table of gates: by each name in backticks of a first cell, the rest of the row."""
    text = (ROOT / document).read_text(encoding="utf-8")
    table = re.search(r"^\| gates? \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, f"{document} has no table of gates"
    cells = [line.strip("|").partition("|") for line in table[1].splitlines()[1:]]
    return {name: rest for first, _, rest in cells for name in re.findall(r"`([^`]+)`", first)}


def test_every_gate_is_judged_for_its_subjects_under_its_name() -> None:
    judgement = judge(
        comparison(oracle_steps=6, repeat=True), record(), record(), oracle=trained(oracle=True), repeat=record()
    )
    judged = {(gate.metric, gate.subject) for gate in judgement.gates}
    assert judged == {(gate.name, subject) for gate in GATES.values() for subject in SUBJECTS[gate.held_to]}
    assert all(gate.passed for gate in judgement.gates), judgement.findings


@pytest.mark.parametrize("name", GATES)
def test_the_failure_of_any_gate_gives_a_finding_with_a_cause(name: str) -> None:
    pairs = {
        subject: RecordPair(comparison(), subject, record(), record(), trained(oracle=True), record())
        for subject in Subject
    }
    for subject in SUBJECTS[GATES[name].held_to]:
        failed = Gate(
            metric=name, subject=subject, passed=False, observed=1.0, limit=0.0, first_step=2, detail="Broken."
        )
        (finding,) = findings([GateResult(failed, {})], pairs)
        assert (finding.metric, finding.subject, finding.step) == (name, subject, 2)
        assert re.match(r"Broken\. Likely: \w.*\w", finding.message), finding.message


def test_of_one_chain_the_first_gate_is_found_and_chains_are_found_apart() -> None:
    pair = RecordPair(comparison(), Subject.COMPARISON, record(), record())
    for chain in Chain:
        of_chain = [gate.name for gate in GATES.values() if gate.chain is chain]
        results = [
            GateResult(Gate(metric=name, passed=False, observed=1.0, limit=0.0, first_step=1), {})
            for name in reversed(of_chain)
        ]
        found = findings(results, dict.fromkeys(Subject, pair))
        assert [finding.metric for finding in found] == of_chain[:1]


def test_every_entry_has_a_title() -> None:
    assert [rule.name for rule in RULES] == list(GATES)
    assert all(gate.title for gate in GATES.values())
    assert all(PLOTS.values())


def test_documents_list_every_gate_and_no_other() -> None:
    detection = rows("docs/detection.md")
    assert detection.keys() == GATES.keys()
    words = {HeldTo.REFERENCE: "other arm", HeldTo.ORACLE: "oracle", HeldTo.REPETITION: "once more"}
    for name, against in detection.items():
        assert words.get(GATES[name].held_to, "") in against, name
    oracle = {gate.name for gate in GATES.values() if gate.held_to is HeldTo.ORACLE}
    assert rows("README.md").keys() == GATES.keys() - oracle | {"oracle_…"}


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    drawn = {path.stem for path in draw(comparison(), record(), record(), tmp_path)}
    assert drawn == PLOTS.keys()
