"""Attacks of an arm on its host that neither files nor the network stop: sockets by path, and system calls."""

import ctypes
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from service.contract import ArmSpec, Mode
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.checkout import Source
from worker.launch import LocalLauncher
from worker.launch.protocol import Isolation, ResourceLimits
from worker.launch.sandbox.confine import SandboxPlan, plan
from worker.runner.follow import run_arm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CALLS = 20
EVERYTHING = "confined: limits, network, mounts, privileges, files, system calls; not confined: –"
NOBODY = 65_534
USERS = [pytest.param(user, id=name) for user, name in ((os.getuid(), "this user"), (NOBODY, "nobody"))]
USERS = USERS if os.getuid() == 0 else USERS[:1]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacks are written for x86_64")


class Servers:
    """Servers at unix sockets, which answer whoever comes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.streams: list[str] = []
        self.datagrams: list[str] = []
        self.packets: list[str] = []

    def __len__(self) -> int:
        return len(self.streams) + len(self.datagrams) + len(self.packets)

    def at(self, folder: Path) -> None:
        """One of each kind in a folder, which is made if it is not there, open to all users."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        name = f"clipwatch-{secrets.token_hex(4)}"
        self.listen(str(folder / f"{name}.stream"), socket.SOCK_STREAM)
        self.listen(str(folder / f"{name}.datagram"), socket.SOCK_DGRAM)
        self.listen(str(folder / f"{name}.packets"), socket.SOCK_SEQPACKET)

    def listen(self, address: str, kind: socket.SocketKind) -> None:
        server = self._stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        server.bind(address)
        if kind is not socket.SOCK_DGRAM:
            server.listen(8)
        if not address.startswith("\0"):
            os.chmod(address, 0o777)
            self._stack.callback(os.unlink, address)
        known = {socket.SOCK_STREAM: self.streams, socket.SOCK_DGRAM: self.datagrams}
        known.get(kind, self.packets).append(address)


def open_to_all_users(folder: Path) -> None:
    """Lets another user reach a folder of pytest's, which has one level more where tests run side by side."""
    for each in (folder, *folder.parents):
        if each == Path(tempfile.gettempdir()):
            return
        each.chmod(0o755)


@pytest.fixture
def servers(tmp_path) -> Iterator[Servers]:
    """Where a host has its own: in /tmp, in /run, in the data folder, beside the arm, and without a path."""
    open_to_all_users(tmp_path)
    with ExitStack() as stack:
        made = Servers(stack)
        made.at(tmp_path / "data")
        made.at(tmp_path / "attempts")
        for folder in map(Path, ("/tmp", "/run")):
            if os.access(folder, os.W_OK):
                made.at(Path(stack.enter_context(TemporaryDirectory(dir=folder, prefix="clipwatch-attack-"))))
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            made.listen(f"\0clipwatch-{secrets.token_hex(4)}", kind)
        yield made


@pytest.fixture
def shared() -> Iterator[int]:
    """The key of a System V segment of this host that every user may read."""
    libc, key = ctypes.CDLL(None), secrets.randbelow(2**30) + 1
    segment = libc.shmget(key, 4096, 0o1666)
    yield key
    libc.shmctl(segment, 0, None)


def targets(servers: Servers, key: int) -> str:
    kinds = {"streams": servers.streams, "datagrams": servers.datagrams, "packets": servers.packets}
    return json.dumps({"worker": os.getpid(), "shared": key, **kinds})


def test_an_arm_reaches_no_server_by_a_path_and_no_call_that_it_does_not_need(servers, shared, tmp_path):
    """Also where the socket lies in a folder that an arm can see: the cache of kernels, and its own source."""
    servers.at(tmp_path / "kernels")
    servers.at(tmp_path / "source")
    folder = tmp_path / "attempts" / "candidate"
    script = f"import sys; sys.path.insert(0, {str(HERE)!r}); import hostile_arm; hostile_arm.main()"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "kernels"), "PYTHONPATH": str(HERE)}
    program = (sys.executable, "-c", script, targets(servers, shared))
    launcher = LocalLauncher(environment, program=program, isolation=Isolation.REQUIRED)
    for name, source in (("installed", None), ("given", Source("path:x", tmp_path / "source", "0"))):
        observer = Recording()
        spec = ArmSpec(workload=tiny(max_steps=1), arm=cpu_arm(Mode.HOOKS))
        own = folder / name
        run_arm("arm", spec, own, launcher=launcher, observer=observer, stop=threading.Event(), source=source)
        written = json.loads((own / "reached.json").read_text())
        assert written["reached"] == {}
        assert len(written["failed"]) == CALLS + len(servers)
        assert EVERYTHING in observer.text


CONFINED = """
import ctypes, json, os, sys
sys.path.insert(0, sys.argv[1])
import hostile_arm
import encodings.idna
from worker.launch.sandbox.confine import SandboxPlan, confine
user, folder = int(sys.argv[2]), sys.argv[3]
os.chdir(folder)
if user != os.getuid():
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    ctypes.CDLL(None).prctl(4, 1)  # as after execve: /proc/self belongs to the user again
done, missing = confine(SandboxPlan(**json.loads(sys.argv[4])))
assert not missing, missing
hostile_arm.main()
"""


def confined(user: int, folder: Path, given: SandboxPlan, aims: str) -> dict[str, dict[str, str]]:
    """The attacks in a process of that user, confined by the plan."""
    folder.mkdir()
    folder.chmod(0o777)
    command = (sys.executable, "-c", CONFINED, str(HERE), str(user), str(folder), json.dumps(asdict(given)), aims)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "reached.json").read_text())


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("gpu", [False, True], ids=["CPU", "GPU"])
def test_neither_root_nor_another_user_reaches_anything(servers, shared, tmp_path, user, gpu):
    """An arm on GPUs may make sockets of two kinds for its ranks, and finds none of the host."""
    folder = tmp_path / "arm"
    given = plan(Isolation.REQUIRED, ResourceLimits(), [ROOT], [], [folder], gpu)
    written = confined(user, folder, given, targets(servers, shared))
    assert written["reached"] == {}
    assert len(written["failed"]) == CALLS + len(servers)


@pytest.mark.parametrize("user", USERS)
def test_an_arm_of_several_hosts_reaches_as_little(servers, shared, tmp_path, user):
    """It has the network of its host. A name without a path is the only one that is left to Landlock."""
    folder = tmp_path / "arm"
    given = plan(Isolation.REQUIRED, ResourceLimits(), [ROOT], [], [folder], True, port=29_500)
    assert confined(user, folder, given, targets(servers, shared))["reached"] == {}


RANKS = """
import array, json, os, socket
first, second = socket.socketpair()
names = [f"\\0rank-{number}" for number in range(2)]
socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).bind("\\0cuda-uvmfd")
ranks = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in names]
for rank, name in zip(ranks, names):
    rank.bind(name)
with open("memory", "w+b") as file:
    file.write(b"handle")
    file.flush()
    handle = array.array("i", [file.fileno()])
    ranks[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handle)], 0, names[1])
_, received, _, _ = socket.recv_fds(ranks[1], 1, 1)
print(os.pread(received[0], 6, 0).decode())
"""


@pytest.mark.parametrize("user", USERS)
def test_ranks_on_gpus_pass_handles_of_memory_as_nccl_does(tmp_path, user):
    """NCCL's ipcsocket.cc: datagrams between abstract names, with a file descriptor in each. CUDA has a socket too."""
    open_to_all_users(tmp_path)
    folder = tmp_path / "arm"
    folder.mkdir()
    folder.chmod(0o777)
    given = plan(Isolation.REQUIRED, ResourceLimits(), [ROOT], [], [folder], True)
    script = CONFINED.replace("hostile_arm.main()", RANKS)
    command = (sys.executable, "-c", script, str(HERE), str(user), str(folder), json.dumps(asdict(given)))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "handle\n"), done.stderr
