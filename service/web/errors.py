"""Errors as pages for whoever asked for a page; everybody else gets the API's `Problem`."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from service.api.mappers import PREFIX
from service.auth import TooMany
from service.web.render import page

KINDS = (HTTPException, RequestValidationError, TooMany, OperationalError, Exception)
KEPT = ("location", "retry-after", "allow")


def add_error_pages(app: FastAPI) -> None:
    """Wraps the handlers that make a `Problem` of every error."""
    for kind in KINDS:
        app.add_exception_handler(kind, _page_or(app.exception_handlers[kind]))


def _page_or(problem_of: Any) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        response: JSONResponse = problem_of(request, error)
        if request.url.path.startswith(PREFIX) or "text/html" not in request.headers.get("accept", ""):
            return response
        problem = json.loads(bytes(response.body))
        kept = {name: response.headers[name] for name in KEPT if name in response.headers}
        return page("error.html", status_code=response.status_code, headers=kept, problem=problem)

    return answer
