"""Checks commits of a clone of Opacus through the API of a running service, and writes their history as a table.

CLIPWATCH_OPACUS_REMOTE=opacus CLIPWATCH_RULES=docs/examples/rules.toml clipwatch up
python -m tests.opacus_history opacus --every 3 --count 22 --suite quick --output docs/results/opacus-history.md
"""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

POLL_SECONDS = 2.0
FOLDER = re.compile(r"/\S*/commit-")
GLYPHS = {"passed": "✓", "failed": "✕", "unsupported": "∅", "error": "!", "cancelled": "–"}


def commits(clone: str, every: int, count: int) -> list[tuple[str, str, str]]:
    """Sha, date and first line of commits on main that touch the package, oldest first."""
    command = ("git", "-C", clone, "log", "--first-parent", "--format=%H%x09%cs%x09%s", "main", "--", "opacus")
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    picked = [line.split("\t", 2) for line in lines[::every][:count]]
    return [(sha, date, title) for sha, date, title in reversed(picked)]


class Service:
    """The API of a running service."""

    def __init__(self, address: str) -> None:
        self._root = address.rstrip("/") + "/api/v1"

    def submit(self, target: dict[str, Any], suite: str) -> str:
        request = urllib.request.Request(
            f"{self._root}/checks",
            json.dumps({"target": target, "suite": suite}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return str(json.load(answer)["id"])

    def history(self, **line: Any) -> dict[str, Any]:
        address = f"{self._root}/check-history?{urllib.parse.urlencode(line | {'limit': 200})}"
        with urllib.request.urlopen(address) as answer:
            return dict(json.load(answer))


def table(checks: list[dict[str, Any]], dates: dict[str, str]) -> Iterator[str]:
    """A row a commit, newest first, then why entries did not pass."""
    names = list(dict.fromkeys(entry["name"] for check in checks for entry in check["entries"]))
    yield "| commit | date | | " + " | ".join(names) + " | check |"
    yield "| --- " * (len(names) + 4) + "|"
    for check in checks:
        found = {entry["name"]: entry for entry in check["entries"]}
        cells = []
        for name in names:
            entry = found.get(name, {})
            change = f" ({entry['transition']})" if entry.get("transition") else ""
            cells.append(f"{GLYPHS.get(entry.get('verdict'), '')} {entry.get('verdict', '')}{change}")
        title = check["title"].replace("|", "¦")
        sha = check["sha"]
        yield f"| `{sha[:10]}` | {dates.get(sha, '')} | {title[:60]} | {' | '.join(cells)} | {check['verdict']} |"
    yield ""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        for entry in check["entries"]:
            if entry["error"]:
                key = (entry["name"], entry["verdict"], FOLDER.sub("…/commit-", entry["error"]))
                reasons.setdefault(key, []).append(check["sha"][:10])
    for (name, verdict, error), shas in reasons.items():
        words = f"`{shas[0]}`" if len(shas) == 1 else f"{len(shas)} commits, `{shas[-1]}` to `{shas[0]}`"
        yield f"* {name}, **{verdict}** on {words}: `{error}`"


@click.command()
@click.argument("clone")
@click.option("--server", default="http://127.0.0.1:8000", show_default=True)
@click.option("--repository", default="meta-pytorch/opacus", show_default=True)
@click.option("--suite", default="smoke", show_default=True)
@click.option("--every", default=1, show_default=True, help="Every n-th commit that touches the package.")
@click.option("--count", default=20, show_default=True)
@click.option("--submit/--no-submit", default=True, help="Or only wait for what was submitted, and print the table.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the table there too.")
def main(
    clone: str,
    server: str,
    repository: str,
    suite: str,
    every: int,
    count: int,
    submit: bool,
    output: Path | None,
) -> None:
    """Check COUNT commits of CLONE, oldest first, and print the table."""
    service, picked = Service(server), commits(clone, every, count)
    if submit:
        for sha, _, title in picked:
            target = {"repository": repository, "branch": "main", "sha": sha, "title": title[:200]}
            click.echo(f"{service.submit(target, suite)} {sha[:10]} {title[:60]}", err=True)
    checks = finished(service, {"repository": repository, "branch": "main", "suite": suite})
    text = "\n".join(table(checks, {sha: date for sha, date, _ in picked})) + "\n"
    click.echo(text)
    if output is not None:
        output.write_text(text)


def finished(service: Service, line: dict[str, str]) -> list[dict[str, Any]]:
    """The checks of a suite on a branch, newest first, once none of them is open; says how far they are."""
    begun, done = time.monotonic(), -1
    while True:
        checks: list[dict[str, Any]] = service.history(**line)["checks"]
        now = sum(check["status"] == "finished" for check in checks)
        if now != done:
            done = now
            click.echo(f"{done} of {len(checks)} after {time.monotonic() - begun:.0f} s", err=True)
        if done == len(checks):
            return checks
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
