"""Adds the dashboard to an app."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from service.web import pages
from service.web.errors import add_error_pages

STATIC = Path(__file__).parent / "static"


def add_dashboard(app: FastAPI) -> None:
    """Adds the `router` of every module of `service.web.pages`, the static files and the error pages.

    The handlers of the API's errors must have been added before.
    """
    for module in sorted(found.name for found in iter_modules(pages.__path__)):
        app.include_router(import_module(f"{pages.__name__}.{module}").router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    add_error_pages(app)
