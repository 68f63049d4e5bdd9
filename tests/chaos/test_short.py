"""A short chaos run; `make chaos` is the long one."""

from pathlib import Path

import pytest

from service.contract import RECORD_FILE
from tests.chaos.jobs import STEPS
from tests.chaos.run import run_chaos
from tests.worker.judge.records import record

# Of this seed the first blow is to fall while a result is recorded, the second on PostgreSQL.
JOBS, SEED = 4, 15


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_short_run_loses_and_doubles_nothing(tmp_path) -> None:
    report = run_chaos(_made_up_record(tmp_path), JOBS, seed=SEED, say=lambda _: None, blows=2 / JOBS)
    assert report.audit.violations == []
    assert (report.audit.lost, report.audit.doubled, sum(report.audit.verdicts.values())) == (0, 0, JOBS)
    assert sum(report.blows.values()) == 2


def _made_up_record(folder: Path) -> Path:
    """A record as an arm leaves it. Training one, as the long form does, takes longer than the run."""
    made = record(private=False, steps=STEPS)
    path = folder / RECORD_FILE
    path.write_text("".join(f"{line.model_dump_json()}\n" for line in [made.start, *made.steps, made.end]))
    return path
