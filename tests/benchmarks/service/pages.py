"""How long pages take when much is stored, beside the same pages when little is."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from service.api.pagination import to_cursor
from service.settings import Settings
from service.store import ComparisonRow, Database, migrate
from tests.benchmarks.service.client import Client, Request
from tests.benchmarks.service.fill import fill
from tests.benchmarks.service.report import Row, p95
from tests.benchmarks.service.servers import Servers, serving

MOST = 1.5
SQLITE_COMPARISONS, SQLITE_MS = 100_000, 50.0
LIST = "/api/v1/comparisons"
EACH_TURN = 10


@dataclass(frozen=True)
class Stored:
    """A database that is served, and how to ask for something that is in it."""

    port: int
    newest: int
    ids: list[str]
    definitions: list[str]

    def requests(self, rng: random.Random) -> dict[str, Request]:
        """A request of each kind, for something at random."""
        cursor = to_cursor(rng.randrange(self.newest // 2, self.newest))
        definition = rng.choice(self.definitions)
        history = f"/api/v1/history?definition={definition}"
        paths = {
            "list": LIST,
            "list, any page": f"{LIST}?cursor={cursor}",
            "list, verdict failed": f"{LIST}?verdict=failed",
            "list, verdict error, status finished": f"{LIST}?verdict=error&status=finished",
            "list, mode oracle": f"{LIST}?mode=oracle",
            "list, mode hooks (none)": f"{LIST}?mode=hooks",
            "list, a definition": f"{LIST}?definition={definition}",
            "list, part of a name": f"{LIST}?name=comparison%201",
            "list, name of none": f"{LIST}?name=no%20such%20name",
            "detail": f"{LIST}/{rng.choice(self.ids)}",
            "history": history,
            "history, any page": f"{history}&cursor={cursor}",
        }
        return {kind: Request("GET", path) for kind, path in paths.items()}


def measure(servers: Servers, folder: Path, few: int, many: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """A row for each kind of page: p95 with `many` stored ÷ p95 with `few`."""
    little, much = (_filled(servers.settings(folder / f"stored-{count}"), count, say) for count in (few, many))
    with _served(little) as small, _served(much) as large:
        times = _turn_by_turn([small, large], rounds, say)
    rows = []
    for kind, (before, after) in times.items():
        ratio = p95(after) / p95(before)
        seen = f"{ratio:.2f} ({1e3 * p95(before):.1f} ms, {1e3 * p95(after):.1f} ms)"
        rows.append(Row(f"{kind}: p95 at {many:,} ÷ at {few:,}", seen, f"≤ {MOST}", ratio <= MOST))
    return rows


def measure_sqlite(folder: Path, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """One row: p95 of the pages of a history on SQLite."""
    settings = Settings(data_dir=folder / "sqlite", port=Servers.free_port())
    database = Database(settings.database)
    migrate(database)
    database.close()
    with _served(_filled(settings, SQLITE_COMPARISONS, say, definition="a" * 64)) as stored:
        (times,) = _turn_by_turn([stored], rounds, say)["history, any page"]
    milliseconds = 1e3 * p95(times)
    what = f"a page of 50 of a history of {SQLITE_COMPARISONS:,} on SQLite: p95"
    return [Row(what, f"{milliseconds:.1f} ms", f"< {SQLITE_MS:.0f} ms", milliseconds < SQLITE_MS)]


def _filled(settings: Settings, count: int, say: Callable[[str], None], *, definition: str | None = None) -> Settings:
    fill(Database(settings.database), count, say, definition=definition)
    return settings


@contextmanager
def _served(settings: Settings) -> Iterator[Stored]:
    """The API on a filled database."""
    rng, database = random.Random(2), Database(settings.database)
    with database.read() as session:
        newest = session.scalar(select(func.max(ComparisonRow.id))) or 0
        some = select(ComparisonRow.public_id).where(ComparisonRow.id.in_(rng.sample(range(1, newest + 1), 1_000)))
        ids = list(session.scalars(some))
        definitions = list(session.scalars(select(ComparisonRow.definition).where(ComparisonRow.id <= 100).distinct()))
    database.close()
    with serving(["api"], settings, settings.folder.with_suffix(".log")):
        yield Stored(settings.port, newest, ids, definitions)


def _turn_by_turn(services: list[Stored], rounds: int, say: Callable[[str], None]) -> dict[str, list[list[float]]]:
    """Seconds of every answer by kind, for each of the services; the first round is thrown away."""
    times: dict[str, list[list[float]]] = {}
    rngs, clients = [random.Random(3) for _ in services], [Client(one.port) for one in services]
    for number in range(rounds + 1):
        for kind in services[0].requests(random.Random(0)):
            for _ in range(EACH_TURN):
                for index, (one, rng, client) in enumerate(zip(services, rngs, clients, strict=True)):
                    seconds, _answer = client.send(one.requests(rng)[kind])
                    if number:
                        times.setdefault(kind, [[] for _ in services])[index].append(seconds)
        say(f"pages: round {number} of {rounds}")
    return times
