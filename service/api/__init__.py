"""The REST API: thin FastAPI routes that parse a request, call an action or read the store, and answer.

Every error has one shape, `Problem`. Lists are paged by cursors. Nothing here holds state or speaks SQL.
"""

from service.api.badges import router as badges_router
from service.api.checks import router as checks_router
from service.api.comparisons import router as comparisons_router
from service.api.headers import LocalOnly, SecurityHeaders
from service.api.health import router as health_router
from service.api.problems import BodyLimit, add_problem_handlers
from service.api.results import router as results_router
from service.api.schemas import PREFIX
from service.api.tokens import router as tokens_router

__all__ = [
    "PREFIX",
    "BodyLimit",
    "LocalOnly",
    "SecurityHeaders",
    "add_problem_handlers",
    "badges_router",
    "checks_router",
    "comparisons_router",
    "health_router",
    "results_router",
    "tokens_router",
]
