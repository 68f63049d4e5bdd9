"""The web application: the REST API and the dashboard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.api import (
    PREFIX,
    BodyLimit,
    LocalOnly,
    SecurityHeaders,
    add_problem_handlers,
    badges_router,
    checks_router,
    comparisons_router,
    health_router,
    results_router,
    tokens_router,
)
from service.context import Context
from service.github import router as github_router
from service.settings import Settings, get_settings
from service.telemetry import Traced
from service.web import add_dashboard


def create_app(settings: Settings | None = None) -> FastAPI:
    """An app with a context of its own. The database must be migrated: `/readyz` says so if it is not."""
    settings = settings or get_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.context.close()

    app = FastAPI(
        title="Clipwatch",
        summary="Does this commit of Opacus still train exactly as it should?",
        version=version("clipwatch"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = Context.open(settings)
    app.add_middleware(Traced)
    add_problem_handlers(app)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.auth == "auto" and not settings.auth_required:
        app.add_middleware(LocalOnly)
    app.add_middleware(SecurityHeaders)
    app.include_router(comparisons_router, prefix=PREFIX)
    app.include_router(results_router, prefix=PREFIX)
    app.include_router(checks_router, prefix=PREFIX)
    app.include_router(badges_router)
    app.include_router(tokens_router, prefix=PREFIX)
    app.include_router(health_router)
    app.include_router(github_router)
    add_dashboard(app)
    return app
