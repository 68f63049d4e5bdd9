"""The short form of the storm; `make chaos` is the long one."""

import pytest

from tests.chaos.run import run_storm, train_record


@pytest.mark.timeout(180)
def test_a_short_storm_loses_and_doubles_nothing(tmp_path) -> None:
    report = run_storm(train_record(tmp_path), 6, seed=4, say=lambda _: None, blows=0.5)
    assert report.audit.violations == []
    assert (report.audit.lost, report.audit.doubled, sum(report.audit.verdicts.values())) == (0, 0, 6)
    assert sum(report.blows.values()) == 3
