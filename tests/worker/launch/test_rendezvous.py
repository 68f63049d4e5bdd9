"""One node of an arm of several: where it meets the others, and which ports it cannot reach."""

import json
import socket
import sys

import pytest

from service.contract import ArmSpec, Mode
from tests.waiting import until
from tests.worker.workloads import cpu_arm, tiny
from worker.launch import LocalLauncher
from worker.launch.multinode import resolve_nodes
from worker.launch.rendezvous import MultiNode, free_port
from worker.launch.sandbox import landlock

PORTS = range(29_300, 29_400)

# Run by torchrun in place of the training: tries each port of its first argument, on its own interface, and moves a
# file to another folder, as Triton does with each kernel that it compiles.
TRY = """
import json, os, pathlib, socket, sys
def reach(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5)
    except OSError as error:
        return type(error).__name__
    return "reached"
found = {"rank": os.environ["RANK"], "nic": os.environ["GLOO_SOCKET_IFNAME"]}
found["ports"] = [reach(port) for port in json.loads(sys.argv[1])]
folder = pathlib.Path(sys.argv[-1])
(folder / "compiled").mkdir()
(folder / "moved").write_text(json.dumps(found))
os.replace(folder / "moved", folder / "compiled" / "found")
"""


def listening(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


@pytest.mark.skipif(landlock.version() < 4, reason="this kernel's Landlock knows no ports: Linux 6.7 does")
def test_an_arm_of_several_hosts_reaches_ports_that_the_system_chose_and_no_other(tmp_path):
    """A database, a broker or a shell listens on a port that its operator chose."""
    taken = free_port(PORTS)
    with listening() as ephemeral, listening(taken) as chosen:
        ports = [ephemeral.getsockname()[1], chosen.getsockname()[1]]
        program = tmp_path / "try.py"
        program.write_text(TRY)
        launcher = LocalLauncher(program=(sys.executable, str(program), json.dumps(ports)))
        rendezvous = MultiNode("127.0.0.1", free_port(PORTS), "1-candidate", 0, 1, "lo", 30)
        running = launcher.join(ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH)), tmp_path, None, rendezvous)
        until(lambda: running.poll() is not None, 60)
    log = (tmp_path / "log.txt").read_text()
    assert running.poll() == 0, log
    assert "confined: limits, mounts, privileges, ports, files, system calls; not confined: –" in log
    assert json.loads((tmp_path / "compiled" / "found").read_text()) == {
        "rank": "0",
        "nic": "lo",
        "ports": ["reached", "PermissionError"],
    }


def test_a_port_that_something_listens_on_is_not_taken():
    port = free_port(PORTS)
    with listening(port):
        assert free_port(range(port, port + 1)) is None
    assert free_port(range(port, port + 1)) == port


def test_each_node_has_the_ranks_that_one_host_would_run():
    launcher = LocalLauncher()
    arm = cpu_arm(Mode.FLASH_FSDP).model_copy(update={"nodes": 3, "world_size": None})
    assert resolve_nodes(launcher, arm).world_size == 6
    assert resolve_nodes(launcher, arm.model_copy(update={"world_size": 3})).world_size == 3
    assert resolve_nodes(launcher, cpu_arm(Mode.FLASH)).world_size == 1
