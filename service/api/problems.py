"""Errors as responses: every one is a `Problem`, whichever part of the app raised it."""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.actions.errors import ActionError, AlreadyFinished, InvalidField, NotFound, RulesUnavailable
from service.api.schemas import FieldError, Problem
from service.auth import TooMany
from service.validation import message_of

STATUSES = {NotFound: 404, AlreadyFinished: 409, InvalidField: 422, RulesUnavailable: 503}


class Refused(HTTPException):
    """A request that is refused for a reason that only HTTP knows: credentials, forms, headers, sizes."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


class BodyLimit:
    """Middleware that refuses a body as soon as more than `limit` bytes of it have come, whatever its header says."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise Refused(413, f"the body is larger than {self._limit} bytes")
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


def _problem(status: int, detail: str, errors: Sequence[FieldError] = (), headers: Any = None) -> JSONResponse:
    title = HTTPStatus(status).phrase
    problem = Problem(title=title, status=status, detail=detail, errors=list(errors))
    return JSONResponse(problem.model_dump(mode="json"), status_code=status, headers=headers)


def _field(location: Sequence[Any]) -> str:
    place, *path = (str(part) for part in location)
    return path[0].title() if place == "header" else ".".join(path) or place


def _field_error(error: dict[str, Any]) -> FieldError:
    if error["type"] == "json_invalid":
        message = f"not JSON: {error['ctx']['error']} at character {error['loc'][-1]}"
        return FieldError(field="body", message=message)
    return FieldError(field=_field(error["loc"]), message=message_of(error))


def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
    errors = [_field_error(one) for one in error.errors()]
    return _problem(422, "; ".join(f"{one.field}: {one.message}" for one in errors), errors)


def _refused(_request: Request, error: HTTPException) -> JSONResponse:
    return _problem(error.status_code, str(error.detail), headers=error.headers)


def _undone(_request: Request, error: ActionError) -> JSONResponse:
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    errors = [FieldError(field=error.field, message=error.message)] if isinstance(error, InvalidField) else []
    return _problem(status, str(error), errors)


def _too_many(_request: Request, error: TooMany) -> JSONResponse:
    return _problem(429, str(error), headers={"Retry-After": str(error.seconds)})


def _no_database(_request: Request, _error: OperationalError) -> JSONResponse:
    return _problem(503, "the database cannot be used just now: /readyz says why", headers={"Retry-After": "5"})


def _defect(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(500, "an unexpected error: the log of the service says more")


HANDLERS: dict[type[Exception], Callable[[Request, Any], JSONResponse]] = {
    RequestValidationError: _invalid,
    HTTPException: _refused,
    ActionError: _undone,
    TooMany: _too_many,
    OperationalError: _no_database,
    Exception: _defect,
}


def add_problem_handlers(app: FastAPI) -> None:
    """Makes every error of the app a `Problem`."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
