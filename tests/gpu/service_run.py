"""Runs the default comparison through the whole service on a machine with GPUs and prints what it served.

    python -m tests.gpu.service_run [--output docs/results/service.md]

Private PostgreSQL and Redis, `clipwatch up` (API, beat, Celery worker) as child processes, the comparison over REST.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.servers import postgres_server, redis_server
from tests.waiting import until

PORT = 8765
SERVER = f"http://127.0.0.1:{PORT}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--set", dest="changes", action="append", default=[], help="as of `clipwatch submit`")
    arguments = parser.parse_args()
    output, changes = arguments.output, [word for change in arguments.changes for word in ("--set", change)]
    with postgres_server() as postgres, redis_server() as broker, tempfile.TemporaryDirectory() as folder:
        settings = {
            "CLIPWATCH_DATABASE_URL": postgres.create("clipwatch"),
            "CLIPWATCH_BROKER_URL": broker.url,
            "CLIPWATCH_DATA_DIR": folder,
            "CLIPWATCH_PORT": str(PORT),
        }
        clipwatch = [sys.executable, "-m", "service.cli"]
        up = subprocess.Popen([*clipwatch, "up"], env={**os.environ, **settings})
        try:
            wait_until_ready(up)
            submit = [*clipwatch, "submit", "--server", SERVER, "--name", "default on GPUs", "--wait", "--json"]
            submit += changes
            done = subprocess.run(submit, stdout=subprocess.PIPE, check=False)
            text = report(json.loads(done.stdout))
        finally:
            up.send_signal(signal.SIGINT)
            status = up.wait(60)
    text += f"\n`clipwatch up` ended with status {status} on Ctrl-C.\n"
    if output:
        output.write_text(text, encoding="utf-8")
    print(text)
    return done.returncode


def wait_until_ready(up: "subprocess.Popen[bytes]") -> None:
    until(lambda: up.poll() is not None or ready(), 60)
    if up.poll() is not None:
        raise SystemExit("clipwatch up ended before it was ready")


def ready() -> bool:
    try:
        return bool(get("/readyz"))
    except OSError:
        return False


def get(path: str) -> bytes:
    with urllib.request.urlopen(SERVER + path, timeout=30) as answer:
        return answer.read()


def report(comparison: dict) -> str:
    path = comparison["links"]["self"]
    lines = [f"Verdict **{comparison['verdict']}** of `{comparison['id']}` (PostgreSQL, Redis, Celery, torchrun).", ""]
    lines += ["| gate | observed | limit | passed |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {gate['metric']} | {gate['observed']} | {gate['limit']} | {gate['passed']} |"
        for gate in comparison["gates"]
    ]
    lines += ["", "| served | bytes |", "| --- | --- |"]
    for served in (path, f"{path}/series", f"{path}/log", f"{path}/plots/loss.png", f"{path}/plots/loss.svg"):
        lines.append(f"| `GET {served.replace(comparison['id'], '…')}` | {len(get(served))} |")
    definition = comparison["definition"]
    history = get(f"/api/v1/history?definition={definition}")
    lines.append(f"| `GET /api/v1/history?definition={definition[:8]}…` | {len(history)} |")
    lines += [
        "",
        "Arms as recorded:",
        "",
        "```json",
        json.dumps(comparison["attempts"][-1]["arms"], indent=1),
        "```",
        "",
    ]
    lines += ["Made by `python -m tests.gpu.service_run`."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
