"""The checks of `clipwatch doctor`: each returns a description, or raises what is wrong and what to do."""

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

from sqlalchemy import select

from service.artifacts import ArtifactFolder
from service.queue import Notifier
from service.settings import Settings
from service.store import Database, TokenRepository, is_current, now, one_line

FREE_GIB = 5
SECONDS = 20


class CheckFailed(Exception):
    """A problem: the first argument says what is wrong, an optional second one what to do."""


@dataclass(frozen=True)
class Check:
    """One check. `look` returns a description or raises an error; `hint` says what to do if the error does not."""

    name: str
    look: Callable[[Settings], str]
    hint: str


def checks() -> Iterator[Check]:
    """The checks of the service, then those that a worker install adds."""
    yield Check("data folder", _data_folder, "give the user that runs the service write access to it")
    yield Check("database", _database, "start it, or set CLIPWATCH_DATABASE_URL")
    yield Check("migrations", _migrations, "run `clipwatch migrate`")
    yield Check("broker", _broker, "start it, or set CLIPWATCH_BROKER_URL; without a broker no worker is notified")
    yield Check("artifacts", _artifacts, "make it writable, or set CLIPWATCH_ARTIFACTS_URL")
    yield Check("disk", _disk, "free some space: `clipwatch prune --older-than 90` removes what finished 90 days ago")
    yield Check("git", _git, "install git: it fetches the commits of Opacus")
    yield Check(
        "remote",
        _remote,
        "check CLIPWATCH_OPACUS_REMOTE and the network; only arms with `commit:` need it",
    )
    yield Check("access", _access, "create a token: `clipwatch token create NAME`")
    for entry in entry_points(group="clipwatch.checks"):
        try:
            added = entry.load()
        except ImportError as error:
            yield Check(entry.name, partial(_missing, str(error)), "pip install 'clipwatch[worker]'")
        else:
            yield from added()


def _missing(what: str, _: Settings) -> str:
    raise CheckFailed(what)


def _data_folder(settings: Settings) -> str:
    settings.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.folder):
        return str(settings.folder)


def _database(settings: Settings) -> str:
    database = Database(settings.database)
    try:
        with database.read() as session:
            session.execute(select(1))
        return repr(database.engine.url)
    finally:
        database.close()


def _migrations(settings: Settings) -> str:
    database = Database(settings.database)
    try:
        if not is_current(database):
            raise CheckFailed("the database is not at the newest revision")
        return "at the newest revision"
    finally:
        database.close()


def _broker(settings: Settings) -> str:
    notifier = Notifier(settings)
    try:
        notifier.check()
    finally:
        notifier.close()
    return "answers"


def _artifacts(settings: Settings) -> str:
    folder, name = ArtifactFolder(settings), f"doctor/{uuid.uuid4().hex}"
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"clipwatch")
        file.flush()
        folder.put(Path(file.name), name)
    if folder.read(name) != b"clipwatch":
        raise CheckFailed("the content that was read is not the one that was written")
    folder.delete(name)
    return "can be written and read"


def _disk(settings: Settings) -> str:
    places = {"data": settings.folder, "temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free / 2**30 for name, path in places.items()}
    words = ", ".join(f"{gib:.1f} GiB free for {name}" for name, gib in free.items())
    if min(free.values()) < FREE_GIB:
        raise CheckFailed(f"{words}: less than {FREE_GIB} GiB")
    return words


def _git(_: Settings) -> str:
    return _output("git", "--version")


def _remote(settings: Settings) -> str:
    # git must fail in place of asking for a password.
    _output("git", "-c", "core.askPass=true", "ls-remote", "--exit-code", settings.opacus_remote, "HEAD")
    return "answers"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise CheckFailed(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"no answer in {SECONDS} s") from None
    if done.returncode:
        raise CheckFailed(one_line(done.stderr or f"status {done.returncode}", 200))
    return done.stdout.strip()


def _access(settings: Settings) -> str:
    where = f"on {settings.host}"
    if not settings.auth_required:
        return f"{where} no token is required" + ("" if settings.on_loopback else ": everyone has access")
    database = Database(settings.database)
    try:
        with database.read() as session:
            if not TokenRepository(session).any_usable(now(session)):
                raise CheckFailed(f"{where} tokens are required, and there is no valid one")
    finally:
        database.close()
    return f"{where} tokens are required"
