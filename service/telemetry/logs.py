"""Logs: lines of text, or JSON by a setting, each with the comparison and attempt that its thread works on.

This configures the standard library's logging, through which uvicorn, Celery and SQLAlchemy log too.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from service.redact import redact
from service.settings import Settings

_context: ContextVar[dict[str, str | int]] = ContextVar("log context", default={})  # noqa: B039, never changed in place


@contextmanager
def bound(**ids: str | int) -> Iterator[None]:
    """A context in which every log record carries these ids, besides those of the contexts around it."""
    before = _context.set(_context.get() | ids)
    try:
        yield
    finally:
        _context.reset(before)


def configure_logging(settings: Settings) -> None:
    """Makes every logger of the process write to standard error, in the format and at the level of the settings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(_with_context)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def _with_context(record: logging.LogRecord) -> bool:
    record.ids = _context.get()
    return True


class TextFormatter(logging.Formatter):
    """`INFO: reclaimed 1 attempts [comparison=cmp_1 attempt=2]`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in getattr(record, "ids", {}).items())
        return redact(super().format(record)) + (f" [{ids}]" if ids else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the ids, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        } | getattr(record, "ids", {})
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)
