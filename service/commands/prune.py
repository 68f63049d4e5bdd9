"""`clipwatch prune`: deletes what finished long ago."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from service.artifacts import ArtifactFolder
    from service.store import Database, PruneRepository

BATCH = 200


@click.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    required=True,
    metavar="DAYS",
    help="Prune what finished this long ago.",
)
@click.option(
    "--what",
    type=click.Choice(["comparisons", "artifacts", "arms", "logs"]),
    default="comparisons",
    show_default=True,
    help="comparisons: comparisons with everything that belongs to them, checks and deliveries. The others keep "
    "verdicts, gates and series. artifacts: all files. arms: only the finished arms that are kept for reuse. "
    "logs: only logs.",
)
@click.option("--dry-run", is_flag=True, help="Only print how much would be deleted.")
def prune(older_than: float, what: str, dry_run: bool) -> None:
    """Delete what finished long ago. Queued and running comparisons stay, whatever their age."""
    from service.artifacts import ARMS, ArtifactFolder
    from service.settings import get_settings
    from service.store import Database, PruneRepository, now

    settings = get_settings()
    database, artifacts = Database(settings.database), ArtifactFolder(settings)
    with database.read() as session:
        before = now(session) - timedelta(days=older_than)
        old = PruneRepository(session, before).count()
    everything = what == "comparisons"
    arms = artifacts.modified_before(before, ARMS) if what != "logs" else []
    comparisons, checks, deliveries = (old.comparisons, old.checks, old.deliveries) if everything else (0, 0, 0)
    files = old.artifacts if what in ("comparisons", "artifacts") else 0
    chunks = old.log_chunks if what in ("comparisons", "logs") else 0
    words = (
        f"{comparisons} comparisons, {files} artifacts, {chunks} pieces of log, {checks} checks and "
        f"{deliveries} deliveries from before {before:%F %T} UTC, and {len(arms)} finished arms"
    )
    if dry_run:
        click.echo(f"would forget {words}")
        return
    for uri in arms:
        artifacts.delete(uri)
    if what in ("comparisons", "artifacts"):
        _artifacts(database, artifacts, before)
    if what in ("comparisons", "logs"):
        _in_batches(database, before, lambda old: old.forget_logs(BATCH))
    if everything:
        _in_batches(database, before, lambda old: old.forget_checks(BATCH))
        _in_batches(database, before, lambda old: old.forget_deliveries(BATCH))
        _in_batches(database, before, lambda old: old.forget_comparisons(BATCH))
    database.close()
    click.echo(f"forgot {words}")


def _artifacts(database: "Database", artifacts: "ArtifactFolder", before: datetime) -> None:
    """Deletes old artifacts, each file before its row: a file without a row would never be found again."""
    from service.store import PruneRepository

    while True:
        with database.read() as session:
            found = PruneRepository(session, before).artifacts(BATCH)
        if not found:
            return
        for _, uri in found:
            artifacts.delete(uri)
        with database.write() as session:
            PruneRepository(session, before).forget_artifacts([row_id for row_id, _ in found])


def _in_batches(database: "Database", before: datetime, forget: "Callable[[PruneRepository], int]") -> None:
    """Deletes in short transactions, so that workers can renew their leases in between."""
    from service.store import PruneRepository

    forgotten = BATCH
    while forgotten == BATCH:
        with database.write() as session:
            forgotten = forget(PruneRepository(session, before))
