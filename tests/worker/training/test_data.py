import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.contract import Family, Head, Sampling, Slices, Workload
from service.contract.slices import deal
from tests.worker.workloads import tiny
from worker.training.data import SyntheticData, global_loader, parts_of
from worker.training.model import PerSampleCrossEntropy, build_model

SIZES = st.integers(0, 300), st.integers(1, 70), st.integers(1, 40)


@given(*SIZES, st.sampled_from(Slices))
def test_shares_cover_the_batch_once_in_the_order_of_parts_and_ranks(batch_size, world_size, virtual_steps, slices):
    shares = deal(Workload(virtual_steps=virtual_steps, slices=slices), batch_size, world_size)
    assert len(shares) == max(1, min(virtual_steps, batch_size))
    assert all(len(part) == world_size for part in shares)
    assert [sample for part in shares for share in part for sample in share] == list(range(batch_size))


@given(*SIZES)
def test_even_shares_differ_by_at_most_one(batch_size, world_size, virtual_steps):
    for part in deal(Workload(virtual_steps=virtual_steps), batch_size, world_size):
        assert max(map(len, part)) - min(map(len, part)) <= 1


def test_uneven_shares_grow_with_the_rank_and_an_idle_one_is_empty():
    def sizes(slices, world_size):
        return [len(share) for share in deal(Workload(slices=slices), 12, world_size)[0]]

    assert sizes(Slices.UNEVEN, 3) == [2, 4, 6]
    assert sizes(Slices.IDLE, 3) == [0, 6, 6]
    assert sizes(Slices.IDLE, 1) == [12]


def test_the_last_batch_holds_what_is_left():
    assert [len(batch) for batch in global_loader(Workload())] == [32] * 31 + [8]


def test_the_data_set_depends_on_the_seed_alone_and_keeps_its_order():
    first, second = list(global_loader(tiny())), list(global_loader(tiny()))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.cat([batch.inputs for batch in first]), SyntheticData(tiny()).inputs)
    assert not torch.equal(SyntheticData(tiny(seed=1)).inputs, SyntheticData(tiny(seed=2)).inputs)


@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0])
def test_padding_leaves_every_sample_its_share(padding):
    mask = SyntheticData(tiny(padding=padding, num_samples=200)).key_padding_mask
    if padding == 0:
        assert mask is None
        return
    lengths = (~mask).sum(dim=1)
    assert lengths.min() == max(1, 6 - int(padding * 6))
    assert lengths.max() == 6


def test_a_language_model_predicts_the_next_token_and_no_padding():
    data = SyntheticData(tiny(model={"head": Head.LM}))
    counted = data.targets != PerSampleCrossEntropy.IGNORED
    assert torch.equal(data.targets[:, :-1][counted[:, :-1]], data.inputs[:, 1:][counted[:, :-1]])
    assert torch.equal(counted[:, :-1], ~data.key_padding_mask[:, 1:])
    assert not counted[:, -1].any()


def test_a_share_of_the_targets_is_ignored_and_inputs_stay():
    changes = {"model": {"head": Head.LM}, "num_samples": 400, "padding": 0.0}
    whole, some = SyntheticData(tiny(**changes)), SyntheticData(tiny(**changes, ignored=0.25))
    ignored = some.targets == PerSampleCrossEntropy.IGNORED
    assert torch.equal(some.inputs, whole.inputs)
    assert torch.equal(some.targets[~ignored], whole.targets[~ignored])
    assert ignored[:, :-1].float().mean() == pytest.approx(0.25, abs=0.03)


def test_poisson_batches_come_at_the_sampling_rate_may_be_empty_and_repeat_with_the_seed():
    def drawn(**changes):
        loader = global_loader(tiny(sampling=Sampling.POISSON, num_samples=60, batch_size=2, **changes))
        return [[batch.inputs.tolist() for batch in loader] for _ in range(30)]

    epochs = drawn()
    sizes = torch.tensor([[len(batch) for batch in epoch] for epoch in epochs]).float()
    assert sizes.shape == (30, 30)
    assert sizes.mean() == pytest.approx(2, abs=0.2)
    assert sizes.var() == pytest.approx(60 / 30 * (1 - 1 / 30), rel=0.2)
    assert sizes.min() == 0
    assert epochs[0] != epochs[1]
    assert drawn() == epochs
    assert drawn(seed=1) != epochs


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("batch_size", [0, 3])
def test_a_rank_without_samples_gets_one_without_weight(family, batch_size):
    padding = 0.0 if family is Family.CONVNET else 0.5
    workload = tiny(model={"family": family}, padding=padding)
    batch = next(iter(global_loader(workload))).part(range(batch_size))
    (idle,) = parts_of(workload, batch, 0, 4, torch.device("cpu"))
    assert (len(idle), len(idle.inputs)) == (0, 1)
    logits = build_model(workload.model, seed=0)(idle.inputs, idle.key_padding_mask)
    assert PerSampleCrossEntropy("sum")(logits, idle.targets) == 0
    (empty,) = parts_of(workload.model_copy(update={"empty_tensors": True}), batch, 0, 4, torch.device("cpu"))
    assert len(empty) == len(empty.inputs) == len(empty.targets) == 0
