"""Submissions per second, against a bare endpoint that inserts the same document."""

import statistics
from collections.abc import Callable
from pathlib import Path

from service.settings import Settings
from tests.benchmarks.service.client import Request, rate
from tests.benchmarks.service.report import Row
from tests.benchmarks.service.servers import Servers, serving
from tests.service.documents import tiny

CONNECTIONS, REQUESTS = 8, 600
LEAST = 0.60


def measure(servers: Servers, folder: Path, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """One row: the median ratio of the rounds."""
    body = tiny("bench").model_dump_json().encode()
    settings = servers.settings(folder / "submissions")
    bare = Settings(data_dir=folder / "bare", port=servers.free_port())
    arguments = [servers.postgres.create("bare"), str(bare.port)]
    with (
        serving(["api"], settings, folder / "submissions.log"),
        serving(arguments, bare, folder / "bare.log", module="tests.benchmarks.service.bare"),
    ):
        ours = [Request("POST", "/api/v1/comparisons", body, 201)] * REQUESTS
        theirs = [Request("POST", "/", body, 201)] * REQUESTS
        rates: list[tuple[float, float]] = []
        for number in range(-1, rounds):  # the first warms up
            pair = rate(settings.port, ours, CONNECTIONS), rate(bare.port, theirs, CONNECTIONS)
            say(f"submissions, round {number + 1} of {rounds}: {pair[0]:.0f}/s, bare {pair[1]:.0f}/s")
            rates += [pair] if number >= 0 else []
    ratio = statistics.median(mine / other for mine, other in rates)
    mine, other = (statistics.median(side) for side in zip(*rates, strict=True))
    seen = f"{ratio:.2f} ({mine:.0f}/s, bare {other:.0f}/s)"
    return [Row("submissions per second ÷ those of a bare endpoint", seen, f"≥ {LEAST:.2f}", ratio >= LEAST)]
