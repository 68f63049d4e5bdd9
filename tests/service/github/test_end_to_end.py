"""From a signed push to a check run with the right verdict: real service, worker, torchrun and git.

With OPACUS_CLONE set to a clone of Opacus, the newest commit of its main branch is pushed in place of made-up ones.
"""

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
import uuid

import pytest

from service.github.signature import sign
from tests.processes import running
from tests.service.github.conftest import SECRET, push
from tests.waiting import until
from tests.worker.checkout.repository import Repository
from tests.worker.opacus_sources import CLIPS_TOO_MUCH, commit_changed_opacus

SUITE = """
[defaults]
oracle_steps = 0
[defaults.workload]
num_samples = 8
batch_size = 4
seq_len = 4
max_steps = 1
max_grad_norm = 0.1
[defaults.workload.model]
vocab_size = 50
hidden_size = 8
num_heads = 2
num_layers = 1
max_length = 8

[[comparison]]
name = "hooks, ghost"
reference = { mode = "hooks", world_size = 1, device = "cpu" }
candidate = { mode = "ghost", world_size = 1, device = "cpu" }
"""


@pytest.fixture
def settings(settings, tmp_path):
    settings.rules.write_text(settings.rules.read_text().replace('["smoke"]', '["one.toml"]'))
    (tmp_path / "one.toml").write_text(SUITE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    remote = os.environ.get("OPACUS_CLONE", settings.opacus_remote)
    return settings.model_copy(update={"port": port, "opacus_remote": remote})


def post(settings, payload, secret=SECRET) -> int:
    body = json.dumps(payload).encode()
    headers = {
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": sign(secret, body),
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(f"http://127.0.0.1:{settings.port}/webhooks/github", body, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def commits(settings, tmp_path) -> list[tuple[str, str, str]]:
    """Sha, conclusion, and words of the check run, in the order in which they are pushed."""
    if "OPACUS_CLONE" in os.environ:
        command = ("git", "-C", settings.opacus_remote, "rev-parse", "main")
        return [(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), "success", "")]
    repository = Repository(tmp_path / "remote")
    good = commit_changed_opacus(repository, {})
    bad = commit_changed_opacus(repository, CLIPS_TOO_MUCH)
    return [
        (good, "success", "1 passed"),
        (bad, "failure", "gate `clip_factors`"),
        ("0" * 39 + "1", "failure", "has no branch, tag or commit"),
    ]


@pytest.mark.slow
def test_a_signed_push_leads_to_a_check_run_with_the_right_verdict(settings, github, tmp_path) -> None:
    with running(["up"], settings, tmp_path / "up.log") as up:
        up.says("Clipwatch is ready")
        assert post(settings, push("f" * 40), b"forged") == 401
        before = "0" * 40
        for sha, conclusion, words in commits(settings, tmp_path):
            assert post(settings, push(sha, before=before)) == 202

            def run(sha=sha):
                return next((run for run in github.check_runs.values() if run["head_sha"] == sha), {})

            until(lambda run=run: run().get("status") == "completed", 120)
            assert run()["conclusion"] == conclusion, run()
            assert words in run()["output"]["title"] + run()["output"]["summary"]
            before = sha
        assert "f" * 40 not in {run["head_sha"] for run in github.check_runs.values()}
        up.end()
