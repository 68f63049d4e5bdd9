"""`clipwatch watch`: polls the repository for pushed branches."""

import logging
from typing import TYPE_CHECKING

import click

from service.commands.errors import CommandError
from service.commands.signals import stop_event

if TYPE_CHECKING:
    from service.github.watch import Watch

log = logging.getLogger(__name__)


@click.command()
@click.option("--once", is_flag=True, help="Poll once and end.")
def watch(once: bool) -> None:
    """Poll the repository of the rules for pushed branches, where no webhook can reach this service.

    `clipwatch beat` then makes checks of new commits. Pull requests are not found: git does not say who opened them.
    """
    from service.checks.rules_file import RulesError
    from service.git import GitError
    from service.github.watch import Watch
    from service.settings import get_settings
    from service.store import Database

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    settings = get_settings()
    if settings.rules is None:
        raise CommandError("nothing to watch for: CLIPWATCH_RULES is not set")
    stop = stop_event()
    database = Database(settings.database)
    watching = Watch(database, settings)
    try:
        if once:
            click.echo(f"{watching.look()} branches moved")
            return
        while not stop.is_set():
            _look(watching)
            stop.wait(settings.watch_seconds)
    except (GitError, RulesError) as error:
        raise CommandError(str(error)) from error
    finally:
        database.close()


def _look(watching: "Watch") -> None:
    """Polls once. A remote that is away, or rules that are being edited, may be there at the next poll."""
    from service.checks.rules_file import RulesError
    from service.git import GitError

    try:
        moved = watching.look()
    except (GitError, RulesError) as error:
        log.error("%s", error)
    else:
        if moved:
            log.info("%d branches moved", moved)
