"""Puts the dashboard on an app."""

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from service.web.actions import router as actions_router
from service.web.checks import router as checks_router
from service.web.comparison import router as comparison_router
from service.web.docs import router as docs_router
from service.web.errors import add_error_pages
from service.web.listing import router as listing_router
from service.web.login import router as login_router

STATIC = Path(__file__).parent / "static"


def add_dashboard(app: FastAPI) -> None:
    """Adds pages, actions and static files. To be called after the handlers of the API's errors were added."""
    routers = (listing_router, comparison_router, checks_router, actions_router, login_router, docs_router)
    for router in routers:
        app.include_router(router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    add_error_pages(app)
