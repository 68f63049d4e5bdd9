"""The app with rules and a secret, GitHub at a local address, and deliveries as GitHub makes them."""

import json
import shutil
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.app import create_app
from service.contract import Verdict
from service.github.signature import sign
from service.queue import Notifier
from service.reconcile import Reconciler
from service.settings import Settings
from service.store import AttemptRepository, CheckRow, ComparisonRow, Database, DeliveryRow, now
from tests.service.documents import result
from tests.service.github.github_server import TOKEN, GitHubServer, github_server

SECRET = b"not a secret at all"
REPOSITORY = "meta-pytorch/opacus"
RULES = """
repository = "meta-pytorch/opacus"
label = "run clipwatch"

[[rule]]
branches = ["main", "release/*"]
paths = ["opacus/**", "!opacus/tests/**"]
suites = ["smoke"]
pull_requests = "same-repository"
"""
A, B, C = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def github(key: rsa.RSAPrivateKey) -> Iterator[GitHubServer]:
    with github_server() as server:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        server.public_key = key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()
        yield server


@pytest.fixture
def settings(sqlite_template: Path, tmp_path: Path, github: GitHubServer, key: rsa.RSAPrivateKey) -> Settings:
    """A GitHub App on SQLite, with retries that are due at once."""
    shutil.copy(sqlite_template, tmp_path / "clipwatch.db")
    (tmp_path / "secret").write_bytes(b"an older one\n" + SECRET + b"\n")
    (tmp_path / "token").write_text(TOKEN)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key").write_bytes(pem)
    (tmp_path / "rules.toml").write_text(RULES)
    return Settings(
        data_dir=tmp_path / "data",
        database_url=f"sqlite:///{tmp_path / 'clipwatch.db'}",
        opacus_remote=str(tmp_path / "remote"),
        rules=tmp_path / "rules.toml",
        github_secret=tmp_path / "secret",
        github_api=github.url,
        github_app_id="1",
        github_app_key=tmp_path / "key",
        public_url="https://clipwatch.example",
        sweep_seconds=0.2,
        keep_seconds=0.1,
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = Database(settings.database)
    yield opened
    opened.close()


@pytest.fixture
def reconciler(settings: Settings, database: Database) -> Iterator[Reconciler]:
    notifier = Notifier(settings)
    yield Reconciler(database, notifier, settings)
    notifier.close()


@pytest.fixture
def checks(database, reconciler):
    """The commits of all checks, after the reconciler's round."""

    def found() -> list[str]:
        reconciler.round()
        with database.read() as session:
            return [row.sha for row in session.scalars(select(CheckRow).order_by(CheckRow.id))]

    return found


@pytest.fixture
def finish(database):
    """Conducts the oldest queued comparison without training: its verdict is made up."""

    def run(verdict: Verdict, error: str | None = None) -> None:
        with database.write() as session:
            queued = select(ComparisonRow.public_id).where(ComparisonRow.status == "queued")
            public_id = session.scalars(queued.order_by(ComparisonRow.id)).first()
            attempts = AttemptRepository(session)
            claim = attempts.claim(public_id, "w", now(session), timedelta(seconds=60))
            outcome = result(verdict)
            if verdict is not Verdict.FAILED:
                outcome = type(outcome)(verdict, error)
            attempts.record(claim.token, outcome, now(session))

    return run


@pytest.fixture
def propose(client, github):
    """A head of a fork's pull request 12, at GitHub and as a delivery."""

    def run(sha: str = A, action: str = "opened") -> None:
        github.heads[12] = sha
        deliver(client, "pull_request", pull_request(action, sha))

    return run


def outcomes(database) -> list[str]:
    with database.read() as session:
        return [row.outcome for row in session.scalars(select(DeliveryRow).order_by(DeliveryRow.id))]


def deliver(client: TestClient, event: str, payload: dict[str, Any], **headers: str) -> Any:
    """A delivery as GitHub makes it. Headers replace GitHub's own."""
    body = json.dumps(payload).encode()
    own = {
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": sign(SECRET, body),
        "Content-Type": "application/json",
    }
    return client.post("/webhooks/github", content=body, headers=own | headers)


def push(sha: str = A, branch: str = "main", before: str = "0" * 40, repository: str = REPOSITORY) -> dict[str, Any]:
    return {
        "ref": f"refs/heads/{branch}",
        "before": before,
        "after": sha,
        "deleted": False,
        "repository": {"full_name": repository, "private": False},
        "head_commit": {"id": sha, "message": "Clip less\n\nBecause."},
        "sender": {"login": "someone"},
    }


def pull_request(
    action: str = "opened", sha: str = A, fork: bool = True, sender: str = "someone", **extra: Any
) -> dict[str, Any]:
    head = "somebody/opacus" if fork else REPOSITORY
    return {
        "action": action,
        "number": 12,
        "pull_request": {
            "number": 12,
            "title": "A better sampler",
            "head": {"ref": "topic", "sha": sha, "repo": {"full_name": head}},
            "base": {"ref": "main", "sha": "0" * 40, "repo": {"full_name": REPOSITORY}},
        },
        "repository": {"full_name": REPOSITORY},
        "sender": {"login": sender, "type": "User"},
        **extra,
    }


def comment(body: str, login: str = "stranger", association: str = "NONE", **extra: Any) -> dict[str, Any]:
    user = {"login": login, "type": "User"}
    return {
        "action": "created",
        "issue": {"number": 12, "pull_request": {"url": "…"}},
        "comment": {"body": body, "user": user, "author_association": association},
        "repository": {"full_name": REPOSITORY},
        "sender": user,
        **extra,
    }
