"""Errors: every one is a `Problem`, whoever raised it."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.schemas import FieldError, Problem
from service.auth import TooMany


class Refused(HTTPException):
    """A request that is refused, with the fields that are at fault."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = list(errors)


def refused_field(field: str, message: str) -> Refused:
    """A 422 about one parameter or header."""
    return Refused(422, f"{field}: {message}", [FieldError(field=field, message=message)])


def not_found(public_id: str) -> Refused:
    return Refused(404, f"there is no comparison {public_id}")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


def _answer(status: int, detail: str, errors: list[FieldError], headers: Any = None) -> JSONResponse:
    title = HTTPStatus(status).phrase
    problem = Problem(title=title, status=status, detail=detail, errors=errors)
    return JSONResponse(problem.model_dump(mode="json"), status_code=status, headers=headers)


def _field(location: Sequence[Any]) -> str:
    place, *path = (str(part) for part in location)
    return path[0].title() if place == "header" else ".".join(path) or place


def _field_error(error: dict[str, Any]) -> FieldError:
    if error["type"] == "json_invalid":
        message = f"not JSON: {error['ctx']['error']} at character {error['loc'][-1]}"
        return FieldError(field="body", message=message)
    return FieldError(field=_field(error["loc"]), message=error["msg"].removeprefix("Value error, "))


class BodyLimit:
    """Middleware that refuses a body once it has grown past `limit` bytes, whatever its length claims to be."""

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


def add_problem_handlers(app: FastAPI) -> None:
    """Makes every error of the app a `Problem`."""

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [_field_error(one) for one in error.errors()]
        return _answer(422, "; ".join(f"{one.field}: {one.message}" for one in errors), errors)

    @app.exception_handler(HTTPException)
    def refused(_request: Request, error: HTTPException) -> JSONResponse:
        errors = error.errors if isinstance(error, Refused) else []
        return _answer(error.status_code, str(error.detail), errors, error.headers)

    @app.exception_handler(TooMany)
    def too_many(_request: Request, error: TooMany) -> JSONResponse:
        return _answer(429, str(error), [], {"Retry-After": str(error.seconds)})

    @app.exception_handler(OperationalError)
    def no_database(_request: Request, _error: OperationalError) -> JSONResponse:
        return _answer(503, "the database cannot be used just now: /readyz says why", [], {"Retry-After": "5"})

    @app.exception_handler(Exception)
    def broken(_request: Request, _error: Exception) -> JSONResponse:
        return _answer(500, "an unexpected error: the log of the service says more", [])
