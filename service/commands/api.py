"""`clipwatch api`: serves the REST API and the dashboard."""

import sys

import click

GRACE_SECONDS = 3
# A request waits for the database a few times, each time for less than a millisecond. With Python's default of 5 ms its
# thread would then wait much longer until another thread releases the interpreter lock.
SWITCH_SECONDS = 0.0005


@click.command()
def api() -> None:
    """Serve the REST API and the dashboard."""
    import uvicorn

    from service.app import create_app
    from service.settings import get_settings
    from service.telemetry import configure_logging, start_tracing

    settings = get_settings()
    configure_logging(settings)
    start_tracing(settings, "api")
    sys.setswitchinterval(SWITCH_SECONDS)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        # A page that follows a log keeps its connection open, which must not delay the end of the process.
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
