"""What a hostile Opacus does when it is imported. The test fills in `TARGETS`; what it got hold of it writes down.

Every attempt is bounded: it also has to be safe where it succeeds.
"""

import json
import os
import socket
import subprocess
import sys
import time

TARGETS = {}


def attempt(name, act):
    try:
        found[name] = repr(act())[:200]
    except BaseException as error:
        failed[name] = type(error).__name__


def read(path):
    with open(path, "rb") as file:
        return file.read(64)


def write(path):
    with open(path, "a") as file:
        file.write("hostile")


def secrets_of(environment):
    secrets = [name for name in environment if name.startswith(("CLIPWATCH_", "AWS_", "GITHUB_"))]
    if not secrets:
        raise LookupError
    return secrets


def outlive():
    """A daemon as of the book: of no session, group or parent of ours."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(300)", TARGETS["marker"]])
        os._exit(0)
    time.sleep(0.1)


found, failed = {}, {}
attempt("environment", lambda: secrets_of(os.environ))
attempt("environment of the worker", lambda: read(f"/proc/{TARGETS['worker']}/environ"))
attempt("memory of the worker", lambda: read(f"/proc/{TARGETS['worker']}/mem"))
attempt("database", lambda: read(TARGETS["database"]))
attempt("other attempt", lambda: read(TARGETS["other"]))
attempt("other attempt, written", lambda: write(TARGETS["other"]))
attempt("other attempt, listed", lambda: os.listdir(os.path.dirname(TARGETS["other"])))
attempt("own source, written", lambda: write(__file__))
attempt("interpreter, written", lambda: write(os.path.join(sys.prefix, "hostile.pth")))
attempt("shadow", lambda: read("/etc/shadow"))
attempt("network", lambda: socket.create_connection(("127.0.0.1", TARGETS["port"]), 2))
attempt("outside", lambda: socket.create_connection(("192.0.2.1", 80), 2))
attempt("signal", lambda: os.kill(TARGETS["worker"], 0))
attempt("mount", lambda: subprocess.run(["mount", "-t", "tmpfs", "x", "/mnt"], check=True, capture_output=True))
attempt("node", lambda: os.mknod("disk", 0o060666, os.makedev(8, 0)))
outlive()
with open("found.json", "w") as file:
    json.dump({"found": found, "failed": failed}, file)
