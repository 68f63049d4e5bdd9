"""`clipwatch api`."""

import click
import uvicorn

from service.app import create_app
from service.settings import get_settings
from service.telemetry import configure_logging, start_tracing

GRACE_SECONDS = 3


@click.command()
def api() -> None:
    """Serve the REST API and the dashboard."""
    settings = get_settings()
    configure_logging(settings)
    start_tracing(settings, "api")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        # A page that follows a log keeps its connection: it must not keep the process.
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
