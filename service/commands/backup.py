"""`clipwatch backup` and `clipwatch restore`, for the embedded database. PostgreSQL has its own tools."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.commands.errors import CommandError

if TYPE_CHECKING:
    from service.settings import Settings

DATABASE, ARTIFACTS = "clipwatch.db", "artifacts"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def backup(folder: Path) -> None:
    """Copy the database and the artifacts into FOLDER, new or empty. The service may run meanwhile."""
    from service.settings import get_settings

    settings = get_settings()
    source, artifacts = _places(settings)
    if not source.exists():
        raise CommandError(f"there is no database {source}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.UsageError(f"{folder} is not empty")
    # Under another name until it is complete, so that an interrupted backup does not look like a whole one.
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True, mode=0o700)
    # The database first: every artifact that it names exists by then.
    _copy(source, making / DATABASE)
    if artifacts.is_dir():
        shutil.copytree(artifacts, making / ARTIFACTS)
    if folder.exists():
        folder.rmdir()
    making.rename(folder)
    click.echo(f"backed up to {folder}")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def restore(folder: Path) -> None:
    """Restore a backup from FOLDER. There must be no database yet, and the service must not run."""
    from service.settings import get_settings

    settings = get_settings()
    target, artifacts = _places(settings)
    if not (folder / DATABASE).is_file():
        raise CommandError(f"{folder} has no {DATABASE}: it was not made by `clipwatch backup`")
    if target.exists():
        raise CommandError(f"there is already a database {target}: move it away first")
    target.parent.mkdir(parents=True, exist_ok=True)
    if (folder / ARTIFACTS).is_dir():
        shutil.copytree(folder / ARTIFACTS, artifacts, dirs_exist_ok=True)
    making = target.with_name(f"{target.name}.making")
    making.unlink(missing_ok=True)
    _copy(folder / DATABASE, making)
    making.rename(target)
    click.echo(f"restored {target}; `clipwatch migrate` brings an older one up to date")


def _places(settings: "Settings") -> tuple[Path, Path]:
    from sqlalchemy import make_url

    url = make_url(settings.database)
    if url.get_backend_name() != "sqlite":
        raise CommandError(
            "this command is for the embedded database: back up PostgreSQL with pg_dump (docs/operations.md)"
        )
    if "://" in settings.artifacts:
        raise CommandError(
            "the artifacts are not in a local folder: back them up there, and copy the database separately"
        )
    assert url.database is not None
    return Path(url.database), Path(settings.artifacts)


def _copy(source: Path, target: Path) -> None:
    """Copies a database as of one instant, while others may write to it, and checks the copy.

    Raises:
        CommandError: the database cannot be copied, or the copy is damaged.
    """
    try:
        with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
            reading.backup(writing)
            (verdict,) = writing.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as error:
        raise CommandError(f"{source} cannot be copied: {error}") from error
    if verdict != "ok":
        raise CommandError(f"{source} is damaged: {verdict}")
