"""The planner's choices, and that kept pairs and written gradients both give the oracle's numbers."""

from itertools import pairwise

import pytest
import torch
from flash_clipping.planner import LinearShape, Planner, SharedInputs, batched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.flash_clipping.model import check_gradients, make_private, oracle, quiet_engine, relative

LONG = LinearShape(4, 4096, 2048, 2048, 2, "fp16x3")
MIDDLE = LinearShape(8, 1536, 2048, 8192, 2, "fp16x3")


def test_written_where_it_pays_and_is_free():
    planner = Planner(0)
    assert planner.writes("a", LONG, 1)  # fewer bytes than its pair
    assert not planner.writes("b", MIDDLE, 2)
    assert not planner.writes("c", LinearShape(32, 64, 512, 2048, 4, "fp16x3"), 3)
    assert [choice.form for choice in planner.plan.values()] == ["written", "gram", "gram"]


def test_the_budget_is_spent_once_a_backward():
    extra = MIDDLE.written_bytes - 8 * 1536 * (2048 + 8192) * 2
    planner = Planner(extra)
    for _ in range(2):
        planner.begin()
        assert [planner.writes(name, MIDDLE, i) for i, name in enumerate("ab")] == [True, False]
    assert str(planner.plan["a"]).startswith("a: written (B 8, T 1536, 2048 → 8192, +16.0 MiB")


def test_an_input_that_layers_share_is_set_free_once():
    square = LinearShape(8, 1024, 2048, 2048, 2, "fp16x3")
    assert [Planner(0).writes("q", square, 1)] == [True]
    planner = Planner(0)
    assert [planner.writes(name, square, 1) for name in "qk"] == [True, False]


def test_what_layers_share_is_counted_once():
    """With 16 bits the pairs of query, key and value are kept; a layer of their shape with its own input is written."""
    alone = LinearShape(8, 1024, 2048, 2048, 2, "fp16x3")
    assert alone._replace(sharing=3).pair_cost < alone.written_cost < alone.pair_cost
    assert alone._replace(sharing=3, itemsize=4).pair_cost == alone._replace(itemsize=4).pair_cost
    planner = Planner(0)
    assert not planner.writes("q", alone._replace(sharing=3), 1)
    assert str(planner.plan["q"]) == "q: gram (B 8, T 1024, 2048 → 2048, input of 3)"


def test_layers_that_share_their_input_are_found():
    """Layers share an input if they are called one after the other with the same tensor."""
    inputs = SharedInputs()
    x, y = torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)
    first, second, other, again = (inputs.counted(t) for t in (x, x, y, x))
    assert first is second
    assert [first.layers, other.layers, again.layers] == [2, 1, 1]


@pytest.mark.parametrize(("autocast", "sharing"), [(False, 2), (True, 1)])
def test_a_plan_says_what_layers_share(autocast, sharing, monkeypatch):
    """Under autocast each layer makes its own copy of the float32 input, so none is shared."""
    monkeypatch.setattr("flash_clipping.planner.SMALL", 0)
    model = Calls(6, 8, True, 1)
    x, labels = torch.randn(3, 5, 6), torch.arange(3)
    _, module, _, criterion, _ = make_private(model, batch=3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = criterion(module(x).float(), labels)
    losses.backward()
    found = {choice.parameter: choice.shape.sharing for choice in module.plan()}
    assert (found["up.weight"], found["head.weight"]) == (sharing, 1)


@given(
    shapes=st.lists(st.tuples(*[st.integers(1, 5000)] * 4, st.sampled_from([2, 4])), max_size=8),
    budget=st.integers(0, 2**32),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_what_is_written_fits_the_budget_and_costs_less(shapes, budget):
    planner = Planner(budget)
    for i, shape in enumerate(shapes):
        planner.writes(str(i), LinearShape(*shape, "ieee"), i)
    written = [choice for choice in planner.plan.values() if choice.form == "written"]
    assert sum(max(choice.extra_bytes, 0) for choice in written) <= budget
    assert all(choice.shape.written_cost < choice.shape.pair_cost for choice in written)


@given(st.lists(st.integers(0, 2**25), max_size=12))
@settings(deadline=None, derandomize=True)
def test_copies_for_one_launch_are_bounded(sizes):
    batches = list(batched(sizes, int))
    assert [size for batch in batches for size in batch] == sizes
    assert all(batch and (len(batch) == 1 or sum(batch) <= 2**24) for batch in batches)
    assert all(sum(batch) + after[0] > 2**24 for batch, after in pairwise(batches))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_written_gradients_equal_the_oracle(dtype, monkeypatch):
    monkeypatch.setattr("flash_clipping.planner.SMALL", 0)
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x))))).mean(1)

    model = Twice().to(dtype)
    x, labels = torch.randn(5, 64, 6, dtype=dtype), torch.arange(5) % 4
    expected_norms, expected = oracle(model, x, labels)
    _, module, _, criterion, _ = make_private(model, engine=quiet_engine(kernels="torch", memory_budget=0))
    criterion(module(x), labels).backward()
    assert {choice.form for choice in module.plan()} == {"written"}  # they are smaller than a pair of so many tokens
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert relative(module.per_sample_gradient_norms, expected_norms) < tolerance
    check_gradients({name: p.grad for name, p in model.named_parameters()}, expected, tolerance)


@given(
    # A LayerNorm of few features amplifies rounding errors, in autograd too.
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 30), st.integers(8, 30)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    small=st.sampled_from([0, 300, 2**22]),
    copied=st.sampled_from([1, 2000, 2**24]),
    budget=st.sampled_from([0, 4000, 2**30]),
    layout=st.sampled_from(["contiguous", "transposed", "expanded"]),
    bias=st.booleans(),
    calls=st.integers(1, 2),
)
@settings(deadline=None, derandomize=True, max_examples=40)
def test_every_plan_gives_the_oracles_numbers(sizes, dtype, small, copied, budget, layout, bias, calls):
    """Pairs or written gradients, in a launch alone or with others, of layers that are called once or twice."""
    batch, tokens, width, inner = sizes
    torch.manual_seed(0)
    model = Calls(width, inner, bias, calls).to(dtype)
    x = torch.randn(batch, tokens, width, dtype=dtype)
    if layout == "transposed":
        x = torch.randn(tokens, batch, width, dtype=dtype).transpose(0, 1)
    elif layout == "expanded":
        x = x[:, :1].expand(-1, tokens, -1)
    labels = torch.arange(batch) % 3
    expected_norms, expected = oracle(model, x, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flash_clipping.planner.SMALL", small)
        patch.setattr("flash_clipping.planner._COPIED", copied)
        _, module, _, criterion, _ = make_private(model, memory_budget=budget, batch=batch)
        criterion(module(x), labels).backward()
    assert relative(module.per_sample_gradient_norms, expected_norms) < 1e-5
    check_gradients({name: p.grad for name, p in model.named_parameters()}, expected)


class Calls(nn.Module):
    """Layers of equal and different shapes, with several tokens and with one. `up` is called once or twice."""

    def __init__(self, width, inner, bias, calls):
        super().__init__()
        self.calls = calls
        self.up, self.down = nn.Linear(width, inner, bias=bias), nn.Linear(inner, width, bias=bias)
        self.twin = nn.Linear(width, inner, bias=bias)
        self.norm, self.head = nn.LayerNorm(inner), nn.Linear(inner, 3, bias=bias)

    def forward(self, x):
        y = self.norm(torch.tanh(self.up(x)) + self.twin(x))
        for _ in range(self.calls - 1):
            y = y + torch.tanh(self.up(torch.tanh(self.down(y))))
        return self.head((y + self.twin(self.down(y)) if self.calls == 1 else y).mean(1))
