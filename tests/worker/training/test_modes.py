"""Every mode against the float64 oracle: same losses, norms and parameters, noise included.

Several ranks run under real torchrun; one rank runs in this process, which has paid for importing torch already.
"""

import math
import socket

import pytest

from service.contract import RECORD_FILE, ArmSpec, Head, LossReduction, Mode
from tests.worker.workloads import cpu_arm, run, tiny
from worker.conductor.arm import RecordReader
from worker.training.loop import train
from worker.training.recorder import Progress
from worker.training.world import World

# Relative, in float32 after three Adam steps on a tiny model.
NORM, STATE = 1e-5, 1e-5


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
def recorded(tmp_path_factory, world):
    """Runs an arm once and keeps its record: (mode, world size, workload changes) → record."""
    records = {}

    def record(mode, world_size=1, dtype="fp32", **changes):
        key = (mode, world_size, dtype, repr(sorted(changes.items())))
        if key not in records:
            folder = tmp_path_factory.mktemp("arm")
            arm = cpu_arm(mode, world_size, dtype=dtype)
            if world_size == 1:
                train(ArmSpec(workload=tiny(**changes), arm=arm), folder, world, Progress())
                reader = RecordReader(folder / RECORD_FILE)
                assert list(reader.read())
                records[key] = reader.record
            else:
                outcome = run(tiny(**changes), arm, folder)
                log = (folder / "log.txt").read_text(errors="replace")
                assert outcome.error is None, f"{outcome.error.message}\n{log[-3000:]}"
                records[key] = outcome.record
        return records[key]

    return record


def assert_same_training(record, oracle):
    assert [step.step for step in record.steps] == [1, 2, 3]
    assert [step.batch_size for step in record.steps] == [8, 8, 3]
    for ours, exact in zip(record.steps, oracle.steps, strict=True):
        assert ours.loss == pytest.approx(exact.loss, rel=STATE)
        assert ours.grad_norms == pytest.approx(exact.grad_norms, rel=NORM)
        assert ours.grad_norm_mean == pytest.approx(exact.grad_norm_mean, rel=NORM)
        assert ours.grad_norm_max == pytest.approx(exact.grad_norm_max, rel=NORM)
        assert ours.clipped_share == exact.clipped_share
        assert ours.clipped_grad_norm == pytest.approx(exact.clipped_grad_norm, rel=STATE)
        assert ours.parameter_norm == pytest.approx(exact.parameter_norm, rel=STATE)
    assert record.end.epsilon == oracle.end.epsilon
    assert record.start.num_parameters == oracle.start.num_parameters


# World sizes past one: the last batch has 3 samples, so slices are uneven at 2 and one is empty at 4.
@pytest.mark.parametrize(
    ("mode", "world_size"),
    [
        (Mode.HOOKS, 1),
        (Mode.FUNCTORCH, 1),
        (Mode.GHOST, 1),
        (Mode.FLASH, 1),
        (Mode.FLASH_FSDP, 1),
        (Mode.FLASH_FSDP, 2),
        (Mode.FLASH_FSDP, 3),
        (Mode.FLASH_FSDP, 4),
        (Mode.GHOST_FSDP, 1),
        (Mode.GHOST_FSDP, 4),
        (Mode.HOOKS, 4),
        (Mode.FLASH, 2),
    ],
)
def test_a_mode_trains_as_the_oracle_does(recorded, mode, world_size):
    record = recorded(mode, world_size)
    assert_same_training(record, recorded(Mode.ORACLE))
    assert record.start.kernels == ("torch" if mode.flash else None)
    assert record.start.world_size == world_size
    assert all(step.step_time > 0 and step.peak_memory > 0 for step in record.steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"bias": False}},
        {"loss_reduction": LossReduction.SUM},
        {"model": {"head": Head.LM}, "noise_multiplier": 0.0},
    ],
    ids=["no bias", "sum", "language model without noise"],
)
def test_flash_fsdp_trains_as_the_oracle_does_on_other_workloads(recorded, changes):
    record = recorded(Mode.FLASH_FSDP, 2, **changes)
    assert_same_training(record, recorded(Mode.ORACLE, **changes))


def test_without_noise_epsilon_is_infinite(recorded):
    changes = {"model": {"head": Head.LM}, "noise_multiplier": 0.0}
    assert recorded(Mode.FLASH_FSDP, 2, **changes).end.epsilon == math.inf


def test_ghost_fsdp_halves_the_update_with_sum_and_the_record_shows_it(recorded):
    """A known fault of Opacus 1.6.0: FSDP averages gradients over ranks, and nothing undoes it for "sum"."""
    changes = {"loss_reduction": LossReduction.SUM}
    record, oracle = recorded(Mode.GHOST_FSDP, 2, **changes), recorded(Mode.ORACLE, **changes)
    assert record.steps[0].grad_norms == pytest.approx(oracle.steps[0].grad_norms, rel=NORM)
    halved = oracle.steps[0].clipped_grad_norm / 2
    assert record.steps[0].clipped_grad_norm == pytest.approx(halved, rel=STATE)


def test_plain_training_is_the_same_at_every_world_size(recorded):
    alone, four = recorded(Mode.NONE), recorded(Mode.NONE, 4)
    for ours, theirs in zip(four.steps, alone.steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=STATE)
        assert ours.clipped_grad_norm == pytest.approx(theirs.clipped_grad_norm, rel=STATE)
    assert alone.steps[0].grad_norms is None
    assert alone.end.epsilon is None


def test_bf16_differs_from_fp32_but_little(recorded):
    ours, exact = recorded(Mode.FLASH, dtype="bf16").steps, recorded(Mode.ORACLE).steps
    errors = [abs(step.loss - right.loss) for step, right in zip(ours, exact, strict=True)]
    assert 1e-6 < max(errors) < 0.05
    assert ours[0].grad_norms == pytest.approx(exact[0].grad_norms, rel=0.05)
