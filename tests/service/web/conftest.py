"""The real app on a SQLite database of the test's own, and a conductor that is played by hand.

What a worker would do is done through the store's own doors: claim, heartbeat, log, record.
"""

import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from service.app import create_app
from service.artifacts import ArtifactFolder
from service.contract import ArmEnd, ArmRecord, ArmStart, Comparison, Finding, Gate, StepRecord, Verdict
from service.settings import Settings
from service.store import (
    ArmProgress,
    ArmResult,
    Artifact,
    AttemptProgress,
    AttemptRepository,
    AttemptResult,
    Claim,
    Database,
    LogRepository,
    now,
)

LEASE = timedelta(minutes=5)
PNG = b"\x89PNG\r\n\x1a\n not really"


@pytest.fixture
def settings(sqlite_template: Path, tmp_path: Path) -> Settings:
    path = tmp_path / "clipwatch.db"
    shutil.copy(sqlite_template, path)
    return Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{path}")


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, headers={"accept": "text/html"}) as client:
        yield client


@pytest.fixture
def conductor(settings: Settings) -> Iterator["Conductor"]:
    played = Conductor(settings)
    yield played
    played.database.close()


def submit(client: TestClient, comparison: Comparison | None = None) -> str:
    """Submits through the API; the id."""
    body = (comparison or Comparison()).model_dump(mode="json")
    return client.post("/api/v1/comparisons", json=body).json()["id"]


def press(client: TestClient, action: str, **options: Any) -> Response:
    """Sends a form as a browser does that has just loaded a page with it."""
    csrf = re.search(r'name="csrf" value="(\w+)"', client.get("/").text)
    return client.post(action, data={"csrf": csrf.group(1) if csrf else ""}, **options)


def start_of(world_size: int = 1, num_steps: int = 32) -> ArmStart:
    return ArmStart(
        num_parameters=14_640_138,
        num_steps=num_steps,
        world_size=world_size,
        device="a CPU",
        kernels="torch",
        versions={"torch": "2.13.0", "opacus": "1.6.0"},
    )


def result(
    verdict: Verdict,
    gates: list[Gate],
    artifacts: list[Artifact],
    epsilon: float = 1.5,
    reused: dict[str, str] | None = None,
) -> AttemptResult:
    step = StepRecord(
        step=1, loss=2.3, batch_size=32, clipped_grad_norm=1.0, parameter_norm=9.0, step_time=0.1, peak_memory=1
    )
    arms = {
        role: ArmResult(
            ArmRecord(
                start=start_of(world_size),
                steps=[step],
                end=ArmEnd(num_steps=32, epsilon=epsilon, delta=1e-5, duration=75.0),
            ),
            reused_from=(reused or {}).get(role),
        )
        for role, world_size in (("reference", 1), ("candidate", 3), ("oracle", 1))
    }
    broken = [gate for gate in gates if not gate.passed]
    findings = [
        Finding(
            metric=gate.metric,
            subject=gate.subject,
            step=gate.first_step,
            parameter=gate.parameter,
            message="Look at <b>this</b>",
        )
        for gate in broken
    ]
    return AttemptResult(verdict=verdict, gates=gates, findings=findings, arms=arms, artifacts=artifacts)


class Conductor:
    """A worker whose every move the test makes."""

    def __init__(self, settings: Settings) -> None:
        self.database = Database(settings.database)
        self._artifacts = ArtifactFolder(settings)
        self._plot = settings.folder / "plot"

    def claim(self, public_id: str) -> Claim:
        with self.database.write() as session:
            claim = AttemptRepository(session).claim(public_id, "worker <1>", now(session), LEASE)
        assert claim is not None
        return claim

    def beat(self, claim: Claim, phase: str, step: int = 0, log: str = "", role: str = "reference") -> bool | None:
        """A heartbeat with progress and new log. Whether a cancel is requested."""
        progress = AttemptProgress(phase, {role: ArmProgress(step, start_of())})
        with self.database.write() as session:
            asked = AttemptRepository(session).heartbeat(claim.token, now(session), LEASE, progress)
            if log:
                LogRepository(session).append(claim.attempt_id, [(role, log)], 1_000_000)
        return asked

    def finish(
        self,
        claim: Claim,
        verdict: Verdict,
        gates: list[Gate] | None = None,
        epsilon: float = 1.5,
        reused: dict[str, str] | None = None,
    ) -> None:
        """`reused` names attempts by the roles of arms that they ran."""
        artifacts = []
        if gates:
            self._plot.parent.mkdir(parents=True, exist_ok=True)
            self._plot.write_bytes(PNG)
            for name, media_type in (("loss.png", "image/png"), ("loss.svg", "image/svg+xml")):
                uri = f"attempts/{claim.attempt_id}/{name}"
                artifacts.append(Artifact(name, media_type, uri, self._artifacts.put(self._plot, uri)))
        with self.database.write() as session:
            written = result(verdict, gates or [], artifacts, epsilon, reused)
            assert AttemptRepository(session).record(claim.token, written, now(session))


def gate(
    metric: str, passed: bool, observed: float | None, limit: float, step: int | None = None, **values: Any
) -> Gate:
    detail = "" if passed else f"{metric} broke <here>."
    return Gate(metric=metric, passed=passed, observed=observed, limit=limit, first_step=step, detail=detail, **values)
