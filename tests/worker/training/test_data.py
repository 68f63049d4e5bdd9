import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.contract import Head, Workload
from tests.worker.workloads import tiny
from worker.training.data import SyntheticTokens, global_loader, rank_slice
from worker.training.model import PerSampleCrossEntropy


@given(st.integers(0, 300), st.integers(1, 70))
def test_slices_cover_the_batch_once_in_rank_order_and_evenly(batch_size, world_size):
    slices = [rank_slice(batch_size, rank, world_size) for rank in range(world_size)]
    assert [sample for start, stop in slices for sample in range(start, stop)] == list(range(batch_size))
    sizes = [stop - start for start, stop in slices]
    assert max(sizes) - min(sizes) <= 1


def test_the_last_batch_holds_what_is_left():
    assert [len(batch) for batch in global_loader(Workload())] == [32] * 31 + [8]


def test_the_data_set_depends_on_the_seed_alone_and_keeps_its_order():
    first, second = list(global_loader(tiny())), list(global_loader(tiny()))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.cat([batch.tokens for batch in first]), SyntheticTokens(tiny()).tokens)
    assert not torch.equal(SyntheticTokens(tiny(seed=1)).tokens, SyntheticTokens(tiny(seed=2)).tokens)


@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0])
def test_padding_leaves_every_sample_its_share(padding):
    mask = SyntheticTokens(tiny(padding=padding, num_samples=200)).key_padding_mask
    if padding == 0:
        assert mask is None
        return
    lengths = (~mask).sum(dim=1)
    assert lengths.min() == max(1, 6 - int(padding * 6))
    assert lengths.max() == 6


def test_a_language_model_predicts_the_next_token_and_no_padding():
    data = SyntheticTokens(tiny(model={"head": Head.LM}))
    counted = data.targets != PerSampleCrossEntropy.IGNORED
    assert torch.equal(data.targets[:, :-1][counted[:, :-1]], data.tokens[:, 1:][counted[:, :-1]])
    assert torch.equal(counted[:, :-1], ~data.key_padding_mask[:, 1:])
    assert not counted[:, -1].any()


def test_a_rank_without_samples_gets_one_without_weight():
    batch = next(iter(global_loader(tiny()))).part(0, 3)
    idle = batch.slice_of(0, 4, torch.device("cpu"))
    assert len(idle) == 1
    assert PerSampleCrossEntropy("sum")(torch.randn(1, 10), idle.targets) == 0
