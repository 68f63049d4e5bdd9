"""`clipwatch token`, and `submit` with what it made."""

import threading

import pytest
import uvicorn

from service.app import create_app
from service.settings import Settings
from tests.service.commands.test_cli import run
from tests.waiting import until


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture
def guarded(settings: Settings):
    app = create_app(settings.model_copy(update={"auth": "required"}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def test_a_token_from_the_command_line_opens_the_service_until_it_is_revoked(guarded, settings) -> None:
    here = {"CLIPWATCH_DATABASE_URL": settings.database_url}
    made = run("token", "create", "CI of <opacus>", "--days", "7", **here)
    assert made.returncode == 0, made.stderr
    (token,) = made.stdout.split()
    public_id = token.split("_")[1]
    refused = run("submit", "--server", guarded)
    assert refused.returncode == 3
    assert "CLIPWATCH_TOKEN" in refused.stderr
    done = run("submit", "--server", guarded, CLIPWATCH_TOKEN=token)
    assert done.stdout.startswith("cmp_"), done.stderr
    shown = run("token", "list", COLUMNS="200", **here).stdout
    assert public_id in shown
    assert token.split("_", 2)[2] not in shown
    assert run("token", "revoke", public_id, **here).returncode == 0
    assert "revoked" in run("token", "list", COLUMNS="200", **here).stdout
    assert run("submit", "--server", guarded, CLIPWATCH_TOKEN=token).returncode == 3
    assert run("token", "revoke", "none", **here).returncode == 3


def test_before_the_migration_it_says_what_to_do(tmp_path) -> None:
    refused = run("token", "list", CLIPWATCH_DATA_DIR=str(tmp_path))
    assert refused.returncode == 3
    assert "clipwatch migrate" in refused.stderr
