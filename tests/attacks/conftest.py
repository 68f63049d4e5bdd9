"""Fixtures of the rooms whose promises are attacked here."""

from tests.service.github.conftest import (
    checks,
    client,
    database,
    finish,
    github,
    key,
    propose,
    reconciler,
    settings,
)

__all__ = ["checks", "client", "database", "finish", "github", "key", "propose", "reconciler", "settings"]
