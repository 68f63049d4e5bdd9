"""`clipwatch up`: runs the whole service as one tree of processes."""

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.commands.children import Children
from service.commands.errors import CommandError
from service.commands.signals import stop_event

if TYPE_CHECKING:
    from service.settings import Settings

READY_SECONDS = 60
POLL_SECONDS = 0.2

# The default comparison with fewer samples: two processes on a laptop's CPU take about a minute for both arms.
DEMO = ("--name", "demo", "--set", "workload.num_samples=256")
DEMO_LIFETIME = timedelta(hours=1)


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port to listen on.  [default: 8000]")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="[default: .clipwatch]")
@click.option("--worker/--no-worker", default=True, show_default=True, help="Start a worker here.")
@click.option("--demo", is_flag=True, help="Submit a small comparison, print its verdict, and go on serving.")
def up(worker: bool, demo: bool, **given: object) -> None:
    """Start API, beat and worker; Ctrl-C ends them all."""
    from service.store import Database, migrate

    settings = _settings({name: value for name, value in given.items() if value is not None})
    _refuse_taken_port(settings)
    database = Database(settings.database)
    migrate(database)
    database.close()
    stop = stop_event()
    names = ["api", "beat", "worker"] if worker else ["api", "beat"]
    with Children(names, settings.environment) as children:
        if _wait_until_ready(settings, children, stop):
            click.echo(f"\nClipwatch is ready: {address_of(settings)}   (Ctrl-C ends it)\n")
            if settings.auth_required:
                click.echo("It requires tokens: `clipwatch token create NAME` creates one.\n")
            with _submitted(DEMO, settings) if demo else nullcontext():
                while not stop.wait(POLL_SECONDS) and children.dead() is None:
                    pass
        if stop.is_set():
            click.echo("shutting down")
        elif (dead := children.dead()) is not None:
            raise CommandError(f"{dead.name} ended unexpectedly with status {dead.status}; see its output above")


@contextmanager
def _submitted(options: Sequence[str], settings: "Settings") -> Iterator[None]:
    """Runs `clipwatch submit --wait` while the context is open; leaving the context ends it."""
    command = [sys.executable, "-m", "service.cli", "submit", "--wait", "--server", address_of(settings), *options]
    # A session of its own, as for the children: Ctrl-C at the terminal signals `up` alone.
    environment = dict(os.environ)
    if settings.auth_required:
        environment["CLIPWATCH_TOKEN"] = _own_token(settings)
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _own_token(settings: "Settings") -> str:
    """A new token that is valid for as long as the demo may take."""
    from service.actions.tokens import create_token
    from service.auth import Scope
    from service.store import Database

    database = Database(settings.database)
    try:
        return create_token(database, "demo", Scope.SUBMIT, DEMO_LIFETIME).text
    finally:
        database.close()


def address_of(settings: "Settings") -> str:
    """The address of the service for a browser on this machine."""
    host = "localhost" if settings.host in ("0.0.0.0", "::", "") else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _settings(given: dict[str, object]) -> "Settings":
    from pydantic import ValidationError

    from service.settings import get_settings

    try:
        return get_settings().model_copy(update=given)
    except ValidationError as error:
        raise click.UsageError(str(error)) from error


def _refuse_taken_port(settings: "Settings") -> None:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise CommandError(
            f"cannot listen on {where}: {error.strerror or error}. Choose another with --port"
        ) from error


def _wait_until_ready(settings: "Settings", children: Children, stop: threading.Event) -> bool:
    """Waits until the service is ready. False if a child ends or a signal comes before.

    Raises:
        CommandError: it is not ready after `READY_SECONDS`.
    """
    reason = "it does not answer"
    for _ in range(int(READY_SECONDS / POLL_SECONDS)):
        if stop.wait(POLL_SECONDS) or children.dead() is not None:
            return False
        try:
            with urllib.request.urlopen(f"{address_of(settings)}/readyz", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            reason = json.dumps(json.load(error).get("checks"))
        except OSError:
            continue
    raise CommandError(f"the service is not ready after {READY_SECONDS} s: {reason}")
