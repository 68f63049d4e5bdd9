"""Health of the API process: liveness, readiness and metrics."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import select

from service.api.access import READS
from service.api.problems import documented
from service.api.schemas import ServiceHealth
from service.context import HasContext
from service.store import is_current, now, one_line, statistics
from service.telemetry import metrics_text

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> ServiceHealth:
    """The process answers."""
    return ServiceHealth(status="ok")


@router.get(
    "/readyz", responses={503: {"model": ServiceHealth, "description": "A part that it needs cannot be reached"}}
)
def readyz(context: HasContext, response: Response) -> ServiceHealth:
    """The database and the broker answer, and the tables are those of this version."""

    def database() -> None:
        with context.database.read() as session:
            session.execute(select(1))

    def migrations() -> None:
        if not is_current(context.database):
            raise RuntimeError("not at the newest revision: run `clipwatch migrate`")

    parts = {"database": database, "migrations": migrations, "broker": context.notifier.check}
    checks = {name: _outcome(check) for name, check in parts.items()}
    ready = all(outcome == "ok" for outcome in checks.values())
    response.status_code = 200 if ready else 503
    return ServiceHealth(status="ok" if ready else "unready", checks=checks)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=documented(401, 403, 422, 429, 503),
    dependencies=[READS],
)
def metrics(context: HasContext) -> Response:
    """Prometheus metrics: the queue, verdicts, attempts and workers, as they are in the database now."""
    with context.database.read() as session:
        found = statistics(session, now(session))
    return Response(metrics_text(found), media_type="text/plain; version=0.0.4; charset=utf-8")


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        return one_line(error)
    return "ok"
