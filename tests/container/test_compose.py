"""From a fresh clone to the verdict of the default comparison, on the CPU, as docker/README.md says."""

import json
import os
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.waiting import until

TOP = Path(__file__).parents[2]
Compose = Callable[..., str]

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def compose(engine, tmp_path) -> Iterator[Compose]:
    """`docker compose` in a clone of what is committed, under a name and on a port of its own."""
    subprocess.run(["git", "clone", "--quiet", str(TOP), str(tmp_path / "clone")], check=True)
    environment = os.environ | {"COMPOSE_PROJECT_NAME": f"clipwatch-{uuid.uuid4().hex[:8]}", "CLIPWATCH_PORT": "0"}

    def run(*arguments: str) -> str:
        command = ["docker", "compose", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    run("down", "--volumes")


def test_a_fresh_clone_serves_the_dashboard_and_runs_the_default_comparison(compose):
    compose("up", "--wait")
    server = "http://" + compose("port", "api", "8000").strip()
    with urllib.request.urlopen(f"{server}/login") as page:
        assert "Clipwatch" in page.read().decode()
    with pytest.raises(HTTPError, match="401"):
        urllib.request.urlopen(f"{server}/api/v1/comparisons")
    token = compose("exec", "-T", "api", "clipwatch", "token", "create", "test", "--scope", "submit").strip()

    def ask(path: str, data: bytes | None = None) -> dict:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(server + path, data, headers)) as answer:
            return json.load(answer)

    public_id = ask("/api/v1/comparisons", b"{}")["id"]

    def verdict() -> str | None:
        return ask(f"/api/v1/comparisons/{public_id}")["verdict"]

    # Who asks more often is refused: 429.
    assert until(verdict, 3000, every=2) == "passed", compose("logs", "worker-cpu")
