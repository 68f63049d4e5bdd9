"""Errors as HTML for a request that accepts HTML; every other request gets the API's `Problem`."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from service.api.problems import HANDLERS
from service.api.schemas import PREFIX
from service.web.render import page

# Headers of the `Problem` that the page has too.
COPIED = ("location", "retry-after", "allow")


def add_error_pages(app: FastAPI) -> None:
    """Replaces the handlers that make a `Problem` of an error by ones that make a page of it where that is wanted."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, _page_or(handler))


def _page_or(problem_of: Callable[[Request, Any], JSONResponse]) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        response = problem_of(request, error)
        if request.url.path.startswith(PREFIX) or "text/html" not in request.headers.get("accept", ""):
            return response
        problem = json.loads(bytes(response.body))
        headers = {name: response.headers[name] for name in COPIED if name in response.headers}
        return page("error.html", status_code=response.status_code, headers=headers, problem=problem)

    return answer
