"""Whether the process lives, and whether it could do its work."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from sqlalchemy import select

from service.api.documents import Health
from service.context import HasContext
from service.store import is_current, one_line

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health, "description": "Something it needs cannot be reached"}})
def readyz(context: HasContext, response: Response) -> Health:
    """The database and the broker answer, and the tables are those of this version."""

    def database() -> None:
        with context.database.read() as session:
            session.execute(select(1))

    def migrations() -> None:
        if not is_current(context.database):
            raise RuntimeError("not at the newest revision: run `clipwatch migrate`")

    parts = {"database": database, "migrations": migrations, "broker": context.bell.check}
    checks = {name: _outcome(check) for name, check in parts.items()}
    ready = all(outcome == "ok" for outcome in checks.values())
    response.status_code = 200 if ready else 503
    return Health(status="ok" if ready else "unready", checks=checks)


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        return one_line(error)
    return "ok"
