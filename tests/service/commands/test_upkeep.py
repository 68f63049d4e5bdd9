"""`doctor`, `prune`, `backup` and `restore`."""

import os
import subprocess
import time

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from service.actions.comparisons import submit
from service.artifacts import ArtifactFolder
from service.checks.lifecycle import queue_checks, settle
from service.cli import cli
from service.contract import Suite, Target
from service.queue import Notifier
from service.settings import Settings, get_settings
from service.store import (
    CheckRepository,
    ComparisonFilter,
    ComparisonRepository,
    Database,
    Delivery,
    DeliveryRepository,
    DeliveryRow,
    DeliveryState,
    LogRepository,
    PruneRepository,
    ReportKind,
    ReportRepository,
    ReportRow,
    now,
)
from tests.servers import postgres_program
from tests.service.documents import tiny


def run(*arguments: str, **environment: str):
    """A command in this process: starting one for each would take most of the time."""
    get_settings.cache_clear()
    try:
        done = CliRunner().invoke(cli, arguments, env=environment)
    finally:
        get_settings.cache_clear()
    return done


def prune(settings: Settings, *options: str) -> str:
    here = {"CLIPWATCH_DATABASE_URL": settings.database_url, "CLIPWATCH_DATA_DIR": str(settings.folder)}
    done = run("prune", *options, **here)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path) -> None:
    here = {"CLIPWATCH_DATA_DIR": str(tmp_path), "CLIPWATCH_OPACUS_REMOTE": str(tmp_path / "nowhere")}
    here |= {"CLIPWATCH_BROKER_URL": "redis://:hunter2@127.0.0.1:1/0", "CLIPWATCH_HOST": "0.0.0.0"}
    found = run("doctor", **here)
    lines = found.stdout.splitlines()
    assert found.exit_code == 3, found.stderr
    wrong = [line.split(":")[0] for line in lines if line.startswith("problem")]
    assert wrong == ["problem migrations", "problem broker", "problem remote", "problem access"]
    assert "→ run `clipwatch migrate`" in found.stdout
    assert "hunter2" not in found.stdout + found.stderr
    assert any(line.startswith("ok") and "torch" in line for line in lines)
    assert any("isolation" in line for line in lines)


def test_doctor_is_content_with_what_works(tmp_path, repository) -> None:
    here = {"CLIPWATCH_DATA_DIR": str(tmp_path), "CLIPWATCH_OPACUS_REMOTE": str(repository.folder)}
    assert run("migrate", **here).exit_code == 0
    found = run("doctor", **here)
    assert found.exit_code == 0, found.stdout
    assert "problem" not in found.stdout


@pytest.fixture
def repository(tmp_path):
    from tests.worker.checkout.repository import Repository

    made = Repository(tmp_path / "remote")
    made.commit({"opacus/__init__.py": ""})
    return made


class TestPrune:
    @pytest.fixture
    def old_and_new(self, settings, database, finish) -> list[str]:
        """A finished comparison with a file and a log, its rerun that is queued, and one more that is queued."""
        notifier = Notifier(settings)
        first = submit(database, notifier, settings, tiny("old")).row
        attempt = finish(first.public_id)
        plot = settings.folder / "plot"
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_bytes(b"PNG")
        ArtifactFolder(settings).put(plot, "attempts/1/loss.png")
        with database.write() as session:
            LogRepository(session).append(attempt, [("reference", "text")], 1_000)
        again = submit(database, notifier, settings, tiny("old"), rerun_of=first).row
        notifier.close()
        return [first.public_id, again.public_id]

    def names(self, database: Database) -> list[str]:
        with database.read() as session:
            return [row.public_id for row in ComparisonRepository(session).page(ComparisonFilter(), limit=9)]

    def test_a_dry_run_and_young_ones_change_nothing(self, settings, database, old_and_new) -> None:
        said = prune(settings, "--older-than", "0", "--dry-run")
        assert said.startswith("would forget 1 comparisons, 1 artifacts, 1 pieces of log, 0 checks and 0 deliveries")
        assert prune(settings, "--older-than", "1").startswith("forgot 0 comparisons, 0 artifacts, 0 pieces")
        assert self.names(database) == old_and_new[::-1]

    def test_logs_and_artifacts_can_go_before_verdicts(self, settings, database, old_and_new) -> None:
        files = settings.folder / "artifacts" / "attempts" / "1"
        prune(settings, "--older-than", "0", "--what", "logs")
        assert list(files.iterdir())
        prune(settings, "--older-than", "0", "--what", "artifacts")
        assert not list(files.iterdir())
        with database.read() as session:
            row = ComparisonRepository(session).get(old_and_new[0])
            assert (row.verdict, len(row.attempts[0].gates)) == ("failed", 5)
            assert LogRepository(session).after(row.id) == []

    def test_what_is_old_goes_with_all_that_belongs_to_it(self, settings, database, old_and_new) -> None:
        prune(settings, "--older-than", "0")
        assert self.names(database) == old_and_new[1:]
        with database.read() as session:
            assert ComparisonRepository(session).get(old_and_new[1]).rerun_of is None
            assert PruneRepository(session, now(session)).count().log_chunks == 0
        assert not list((settings.folder / "artifacts" / "attempts" / "1").iterdir())


class TestPruneArms:
    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    def test_those_alone_that_nobody_kept_lately(self, settings, database) -> None:
        artifacts = ArtifactFolder(settings)
        for name in ("old", "young"):
            artifacts.write(b"an arm", f"arms/{name}")
        folder = settings.folder / "artifacts" / "arms"
        long_ago = time.time() - 10 * 86_400
        os.utime(folder / "old", (long_ago, long_ago))
        here = {"CLIPWATCH_DATABASE_URL": settings.database_url, "CLIPWATCH_DATA_DIR": str(settings.folder)}
        for what in ("logs", "arms"):
            done = run("prune", "--older-than", "9", "--what", what, **here)
            assert done.exit_code == 0, done.stderr
            assert done.stdout.endswith(f", and {int(what == 'arms')} finished arms\n")
        assert [file.name for file in folder.iterdir()] == ["young"]
        assert artifacts.read("arms/young") == b"an arm"


class TestPruneChecks:
    """Checks, their reports, and deliveries."""

    TARGET = Target(repository="me/opacus", branch="main", sha="a" * 40)

    def queue_check(self, database, settings) -> tuple[int, str]:
        """A check of one comparison, and a report about it."""
        with database.write() as session:
            suite = Suite(name="s", comparisons=(tiny("only"),))
            (row,) = queue_checks(session, settings, self.TARGET, [suite])
            ReportRepository(session).enqueue(
                f"commit:{row.public_id}", ReportKind.COMMIT, now(session), check_id=row.id
            )
            return row.id, row.entries[0].comparison.public_id

    def deliver(self, database, number: int, branch: str) -> None:
        document = Delivery(f"guid {number}", "watch", "push", "me/opacus", {}, branch=branch, sha="a" * 40)
        with database.write() as session:
            deliveries, moment = DeliveryRepository(session), now(session)
            assert deliveries.remember(document, moment)
            (row,) = deliveries.received()
            assert deliveries.move(row.id, DeliveryState.RECEIVED, DeliveryState.DONE, "", moment)

    def test_an_old_check_goes_with_its_reports_and_a_young_one_keeps_its_comparison(
        self, settings, database, finish
    ) -> None:
        old, ended = self.queue_check(database, settings)
        finish(ended)
        assert settle(database, settings) == 1
        young, done_early = self.queue_check(database, settings)
        finish(done_early)
        said = prune(settings, "--older-than", "0")
        assert said.startswith("forgot 1 comparisons, 1 artifacts, 0 pieces of log, 1 checks and 0 deliveries")
        with database.read() as session:
            assert [CheckRepository(session).by_id(one) is None for one in (old, young)] == [True, False]
            assert session.scalars(select(ReportRow.check_id)).all() == [young]
            assert ComparisonRepository(session).get(ended) is None
            assert ComparisonRepository(session).get(done_early) is not None

    def test_the_newest_delivery_of_a_branch_stays_and_what_is_not_handled_does(self, settings, database) -> None:
        for number, branch in enumerate(["main", "main", "main", "dev"]):
            self.deliver(database, number, branch)
        with database.write() as session:
            assert DeliveryRepository(session).remember(
                Delivery("waits", "watch", "push", "me/opacus", {}, branch="main", sha="a" * 40), now(session)
            )
        assert "3 deliveries" in prune(settings, "--older-than", "0", "--dry-run")
        prune(settings, "--older-than", "0")
        with database.read() as session:
            kept = session.scalars(select(DeliveryRow.guid).order_by(DeliveryRow.id))
            assert list(kept) == ["guid 3", "waits"]


class TestBackup:
    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    def test_what_was_backed_up_comes_back(self, settings, database, tmp_path) -> None:
        notifier = Notifier(settings)
        made = submit(database, notifier, settings, tiny("kept")).row.public_id
        notifier.close()
        artifacts = settings.folder / "artifacts" / "attempts" / "1"
        artifacts.mkdir(parents=True)
        (artifacts / "loss.png").write_bytes(b"PNG")
        here = {"CLIPWATCH_DATABASE_URL": settings.database_url, "CLIPWATCH_DATA_DIR": str(settings.folder)}
        with database.write():  # another process is in the middle of writing
            done = run("backup", str(tmp_path / "kept"), **here)
        assert done.exit_code == 0, done.stderr
        assert run("backup", str(tmp_path / "kept"), **here).exit_code == 2
        there = {"CLIPWATCH_DATA_DIR": str(tmp_path / "elsewhere")}
        assert run("restore", str(tmp_path / "kept"), **there).exit_code == 0
        restored = Database(Settings(data_dir=tmp_path / "elsewhere").database)
        with restored.read() as session:
            assert ComparisonRepository(session).get(made).name == "kept"
        restored.close()
        assert (tmp_path / "elsewhere/artifacts/attempts/1/loss.png").read_bytes() == b"PNG"
        again = run("restore", str(tmp_path / "kept"), **there)
        assert again.exit_code == 3
        assert "already" in again.stderr

    def test_a_damaged_database_is_no_backup(self, settings, tmp_path) -> None:
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "clipwatch.db").write_bytes(b"not a database at all" * 100)
        refused = run("restore", str(broken), CLIPWATCH_DATA_DIR=str(tmp_path / "there"))
        assert refused.exit_code == 3
        assert not (tmp_path / "there" / "clipwatch.db").exists()

    def test_postgresql_comes_back_by_its_own_tools(self, postgres, postgres_template, tmp_path) -> None:
        kept, back = (postgres.create(name, postgres_template) for name in ("kept", "back"))
        database, notifier = Database(kept), Notifier(Settings(data_dir=tmp_path))
        made = submit(database, notifier, Settings(data_dir=tmp_path), tiny("kept")).row.public_id
        database.close()
        notifier.close()
        dump = str(tmp_path / "clipwatch.dump")
        for command in (
            ["pg_dump", "--format=custom", "--file", dump, kept],
            ["pg_restore", "--clean", "--if-exists", "--exit-on-error", "--dbname", back, dump],
        ):
            words = [word.replace("postgresql+psycopg://", "postgresql://") for word in command]
            done = subprocess.run([postgres_program(words[0]), *words[1:]], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert run("migrate", CLIPWATCH_DATABASE_URL=back, CLIPWATCH_DATA_DIR=str(tmp_path)).exit_code == 0
        restored = Database(back)
        with restored.read() as session:
            assert ComparisonRepository(session).get(made).name == "kept"
        restored.close()
        for name in ("kept", "back"):
            postgres.drop(name)

    def test_postgresql_has_its_own(self, tmp_path) -> None:
        refused = run("backup", str(tmp_path / "x"), CLIPWATCH_DATABASE_URL="postgresql://me@h/d")
        assert refused.exit_code == 3
        assert "pg_dump" in refused.stderr


def test_migrate_waits_for_somebody_else_to_migrate(tmp_path) -> None:
    here = {"CLIPWATCH_DATA_DIR": str(tmp_path)}
    alone = run("migrate", "--wait", "0", **here)
    assert alone.exit_code == 3
    assert "not at the newest revision, after 0 s" in alone.stderr
    assert run("migrate", **here).exit_code == 0
    assert run("migrate", "--wait", "0", **here).exit_code == 0
