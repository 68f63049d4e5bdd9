"""The app with a GitHub at a local address, as the tests of `service.github` have it."""

from tests.service.github.conftest import client, database, finish, github, key, reconciler, settings

__all__ = ["client", "database", "finish", "github", "key", "reconciler", "settings"]
