"""A disk that is full while a result is recorded: the verdict is stored when there is space again."""

import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from service.contract import Verdict
from service.settings import Settings
from service.store import AttemptRepository, ComparisonRepository, Database, migrate, now
from tests.service.documents import result, tiny
from tests.waiting import until
from worker.conductor.lease import Lease

SIZE = 4 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Fill the disk. Returns the file that fills it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**16, 512):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def test_a_result_waits_for_space_and_is_recorded_once(disk, caplog) -> None:
    settings = Settings(data_dir=disk, heartbeat_seconds=0.1, lease_seconds=60)
    database = Database(settings.database)
    migrate(database)
    with database.write() as session:
        moment, attempts = now(session), AttemptRepository(session)
        public_id = ComparisonRepository(session).add(tiny(), moment, ring_after=moment).public_id
        claim = attempts.claim(public_id, "w", moment, timedelta(seconds=60))
    large = result()
    large.gates[0] = large.gates[0].model_copy(update={"detail": "x" * 2**19})
    verdicts = []

    def record() -> None:
        verdicts.append(lease.finish(lambda session, attempts: attempts.record(claim.token, large, now(session))))

    with Lease(database, claim, settings) as lease:
        filler = fill_up(disk)
        thread = threading.Thread(target=record)
        thread.start()
        until(lambda: "cannot record yet" in caplog.text, 30)
        with database.read() as session:
            assert ComparisonRepository(session).get(public_id).status == "running"
        filler.unlink()
        thread.join(30)
    with database.read() as session:
        row = ComparisonRepository(session).get(public_id)
    assert (verdicts, row.status, row.verdict) == ([Verdict.FAILED], "finished", "failed")
    assert [len(attempt.gates) for attempt in row.attempts] == [len(large.gates)]
    database.close()
