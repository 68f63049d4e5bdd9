"""`python -m tests.benchmarks.service`: one table, and exit status 1 when a target is missed."""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.benchmarks.service import arms, fill, pages, submissions
from tests.benchmarks.service.report import Row, table
from tests.benchmarks.service.servers import Servers
from tests.servers import postgres_server, redis_server

PARTS = ("submissions", "start", "verdict", "sqlite", "pages")
PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "celery", "pydantic", "torch", "opacus")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--stored", type=int, default=1_000_000, help="comparisons in the large database")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verdicts", type=int, default=3, help="rounds of whole comparisons, minutes each")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    with postgres_server() as postgres, redis_server() as redis, tempfile.TemporaryDirectory(prefix="cw-bench-") as top:
        rows = _measured(Servers(postgres, redis), Path(top), options)
        server = postgres.version
    text = _document(rows, options, server)
    print(text)
    if options.output:
        options.output.write_text(text)
    return int(any(row.met is False for row in rows))


def _measured(servers: Servers, folder: Path, options: argparse.Namespace) -> list[Row]:
    stored, rounds = options.stored, options.rounds
    parts: dict[str, Callable[[], list[Row]]] = {
        "submissions": lambda: submissions.measure(servers, folder, rounds, _say),
        "start": lambda: arms.measure_start(servers, folder, rounds, _say),
        "verdict": lambda: arms.measure_verdict(servers, folder, options.verdicts, _say),
        "sqlite": lambda: pages.measure_sqlite(folder, rounds, _say),
        "pages": lambda: pages.measure(servers, folder, min(10_000, stored), stored, rounds, _say),
    }
    return [row for part in PARTS if part in options.only for row in parts[part]()]


def _document(rows: list[Row], options: argparse.Namespace, postgres: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = psutil.virtual_memory().total / 2**30
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    machine = f"{os.cpu_count()} CPU cores, {memory:.0f} GiB, load at the end {load} (1, 5 and 15 minutes)"
    return f"""# Speed of the service itself

    {" ".join(["python -m tests.benchmarks.service", *sys.argv[1:]])}

{machine}; Python {platform.python_version()}, PostgreSQL {postgres}, {versions}.

{table(rows)}

The two sides of a ratio are measured alternately, in {options.rounds} rounds ({options.verdicts} of whole comparisons);
the first request of each does not count. A ratio is the median of the rounds; p95 is over all rounds. Client, API,
PostgreSQL and Redis share the machine. "A bare endpoint" is FastAPI with SQLAlchemy under the same uvicorn, which
validates and inserts the same document. "By hand" is the same torchrun without the service. Both arms are those of the
default comparison, without its oracle. A page has 50 comparisons. Stored: {fill.FILLED}.
"""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
