"""Arms run once and kept: one rank in this process, which has imported torch, several in forks of one that has.

tests/worker/launch/test_forked.py holds such forks to real torchrun, bit by bit.
"""

import socket
from pathlib import Path

import pytest

from service.contract import RECORD_FILE, ArmRecord, ArmSpec, Mode
from tests.worker.workloads import cpu_arm, run, tiny
from worker.runner.follow import RecordReader
from worker.training.loop import train
from worker.training.recorder import CurrentStep
from worker.training.world import World


@pytest.fixture(scope="module")
def world():
    """This process as a world of one rank."""
    with socket.socket() as probe, pytest.MonkeyPatch.context() as patch:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            patch.setenv(name, value)
        world = World.join(cpu_arm(Mode.FLASH).device)
        yield world
        world.leave()


@pytest.fixture(scope="module")
def train_here(tmp_path_factory, world):
    """Trains an arm of one rank in this process and reads its record."""

    def record(spec: ArmSpec) -> ArmRecord:
        folder: Path = tmp_path_factory.mktemp("arm")
        train(spec, folder, world, CurrentStep())
        reader = RecordReader(folder / RECORD_FILE)
        assert list(reader.read())
        return reader.record

    return record


@pytest.fixture(scope="package")
def launcher(fork_server):
    return fork_server


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, train_here, launcher):
    """Runs an arm once and keeps its record: (mode, world size, dtype, workload changes) → record."""
    records = {}

    def record(mode, world_size=1, dtype="fp32", num_steps=None, **changes):
        key = (mode, world_size, dtype, num_steps, repr(sorted(changes.items())))
        if key not in records:
            arm = cpu_arm(mode, world_size, dtype=dtype)
            if world_size == 1:
                records[key] = train_here(ArmSpec(workload=tiny(**changes), arm=arm, num_steps=num_steps))
            else:
                folder = tmp_path_factory.mktemp("arm")
                outcome = run(tiny(**changes), arm, folder, launcher)
                log = (folder / "log.txt").read_text(errors="replace")
                assert outcome.error is None, f"{outcome.error.message}\n{log[-3000:]}"
                records[key] = outcome.record
        return records[key]

    return record
