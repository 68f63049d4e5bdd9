"""The command line: lazy commands, spellings, exit statuses."""

import json
import os
import resource
import subprocess
import sys
import threading
from datetime import timedelta

import click
import pytest
import uvicorn

from service import cli
from service.app import create_app
from service.auth import Scope
from service.commands.token import SCOPES
from service.contract import Verdict
from service.settings import Settings
from service.store import AttemptRepository, ComparisonFilter, ComparisonRepository, Database, is_current, now
from service.suites import load
from tests.service.documents import result, tiny
from tests.waiting import until
from worker.commands import SHORT_HELP

WITHOUT_TORCH = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "opacus", "triton", "matplotlib", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from service.cli import main
main()
"""


def run(*arguments: str, program=("-m", "service.cli"), text: str = "", **environment: str):
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env=os.environ | environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def base_install(*arguments: str):
    return run(*arguments, program=("-c", WITHOUT_TORCH))


@pytest.mark.parametrize("command", ["up", "api", "beat", "migrate", "submit", "watch"])
def test_a_base_install_runs_the_service(command) -> None:
    shown = base_install(command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage" in shown.stdout


@pytest.mark.parametrize("arguments", [("compare", "--batch-size", "4"), ("train", "--help"), ("worker",)])
def test_a_base_install_says_what_the_worker_commands_need(arguments) -> None:
    refused = base_install(*arguments)
    assert refused.returncode == 3
    assert "clipwatch[worker]" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_help_lists_every_command_in_both_installs() -> None:
    for shown in (run("--help"), base_install("--help")):
        assert shown.returncode == 0
        for command in ("up", "api", "beat", "migrate", "submit", "compare", "train", "worker"):
            assert f"\n  {command} " in shown.stdout


HELP_OF_EVERY_COMMAND = """
import sys
from click.testing import CliRunner
from service.cli import cli
heavy = {"alembic", "celery", "fastapi", "kubernetes", "matplotlib", "numpy", "opacus", "redis", "scipy", "sqlalchemy",
         "torch", "triton"}
def look(command, *names):
    shown = CliRunner().invoke(cli, [*names, "--help"])
    assert "Usage" in shown.output, names
    if loaded := heavy & set(sys.modules):
        sys.exit(f"{' '.join(names)} --help imports {sorted(loaded)}")
    for name in getattr(command, "list_commands", lambda _: ())(None):
        look(command.get_command(None, name), *names, name)
look(cli)
"""


def test_no_help_imports_what_only_a_running_command_needs() -> None:
    shown = run(program=("-c", HELP_OF_EVERY_COMMAND))
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(("arguments", "seconds"), [((), 1.0), (("compare",), 2.0), (("api",), 2.0)])
def test_help_is_quick(arguments, seconds) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*arguments, "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds


def test_the_list_of_commands_says_what_their_docstrings_say() -> None:
    context = click.Context(cli.cli)
    listed = cli.OWN | SHORT_HELP
    assert list(listed) == cli.cli.list_commands(context)
    for name, text in listed.items():
        command = cli.cli.get_command(context, name)
        assert text == " ".join(command.help.partition("\n\n")[0].split()), name


def test_a_token_can_have_every_scope() -> None:
    assert list(SCOPES) == [scope.value for scope in Scope]


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("up", "--port", "0"), ("submit", "--set", "x", "--server", "http://x")]
)
def test_a_usage_error_is_status_2(arguments) -> None:
    assert run(*arguments).returncode == 2


def test_migrate_brings_the_database_up_to_date(tmp_path) -> None:
    done = run("migrate", CLIPWATCH_DATA_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    database = Database(Settings(data_dir=tmp_path).database)
    assert is_current(database)
    database.close()


def test_a_wrong_setting_is_an_error_and_not_a_failed_comparison(tmp_path) -> None:
    assert run("migrate", CLIPWATCH_PORT="many").returncode == 3


class TestSubmit:
    """Against a real server, with the part of the worker played by the test."""

    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    @pytest.fixture
    def server(self, settings):
        config = uvicorn.Config(create_app(settings), port=0, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join(10)

    def test_it_prints_the_id_of_what_it_made(self, server) -> None:
        made = run("submit", "-", "--server", server, "--set", "candidate.mode=hooks", text=tiny().model_dump_json())
        assert made.returncode == 0, made.stderr
        again = run("submit", "--server", server, "--idempotency_key", "k", "--json")
        assert json.loads(again.stdout)["id"] != made.stdout.strip()
        repeat = run("submit", "--server", server, "--idempotency-key", "k", "--json")
        assert json.loads(repeat.stdout) == json.loads(again.stdout)

    def test_a_suite_is_a_submission_of_each_of_its_comparisons(self, server, database) -> None:
        made = run("submit", "--suite", "smoke", "--server", server, "--set", "workload.seed=7", "--no-reuse", "--json")
        assert made.returncode == 0, made.stderr
        names = [f"smoke/{comparison.name}" for comparison in load("smoke").comparisons]
        with database.read() as session:
            rows = ComparisonRepository(session).page(ComparisonFilter(), limit=10)
            assert sorted(row.name for row in rows) == sorted(names)
            assert {row.document["reuse"] for row in rows} == {False}
            assert {row.public_id for row in rows} == {answer["id"] for answer in json.loads(made.stdout)}
        refused = run("submit", "--suite", "nosuch", "--server", server)
        assert refused.returncode == 2
        assert "no suite nosuch" in refused.stderr

    @pytest.mark.parametrize(("verdict", "status"), [("passed", 0), ("failed", 1), ("error", 3), ("cancelled", 3)])
    def test_waiting_ends_with_the_verdict_as_status(self, server, database, verdict, status) -> None:
        ended = []
        waiting = threading.Thread(
            target=lambda: ended.append(run("submit", "--wait", "--server", server, COLUMNS="200"))
        )
        waiting.start()

        def rows():
            with database.read() as session:
                return ComparisonRepository(session).page(ComparisonFilter(), limit=1)

        (row,) = until(rows, 30)
        with database.write() as session:
            attempts = AttemptRepository(session)
            claim = attempts.claim(row.public_id, "w", now(session), timedelta(seconds=60))
            attempts.record(claim.token, result(Verdict(verdict)), now(session))
        waiting.join(30)
        assert ended[0].returncode == status, ended[0].stderr
        assert f"Verdict: {verdict}" in ended[0].stdout
        assert "reference: not run, reused from cmp_earlier/2\n" in ended[0].stdout
        assert "nan" in ended[0].stdout

    def test_a_refusal_names_the_field(self, server) -> None:
        refused = run("submit", "--server", server, "--set", "workload.batch_size=0")
        assert refused.returncode == 3
        assert "workload.batch_size" in refused.stderr

    def test_nobody_there_is_one_line(self) -> None:
        refused = run("submit", "--server", "http://127.0.0.1:1")
        assert refused.returncode == 3
        (line,) = refused.stderr.splitlines()
        assert "http://127.0.0.1:1" in line
