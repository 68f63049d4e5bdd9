"""Sketches: unbiased, additive over shards of any size, and blind to nothing that is not finite."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from worker.training.sketch import HEAD, PROJECTIONS, LocalPart, Sketcher, signs, sketches

CPU = torch.device("cpu")
# Those of one shape are apart, because sketches are made shape by shape.
SHAPES = {"embedding": (50, 6), "weight": (6, 6), "bias": (7,), "scale": (), "filters": (4, 3, 2, 2), "other": (6, 6)}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def measured(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return measured_parts([LocalPart.of(name, value) for name, value in values.items()], list(values.values()))


def measured_parts(parts: list[LocalPart], shards: list[torch.Tensor]) -> torch.Tensor:
    sketcher = Sketcher(parts, CPU, torch.float64 if shards[0].dtype == torch.float64 else torch.float32)
    sketcher.load(shards)
    return sketcher.measure()


def test_a_projection_is_the_sum_with_signs_of_row_and_column():
    values = tensors(0)
    result = measured(values)
    for row, (name, value) in zip(result, values.items(), strict=True):
        seen = value.reshape(value.shape[0] if value.dim() else 1, -1).double().numpy()
        by_row, by_column = signs(name, "row", 0, seen.shape[0]), signs(name, "column", 0, seen.shape[1])
        expected = np.einsum("ki,ij,kj->k", by_row, seen, by_column)
        assert row[: PROJECTIONS + 1].tolist() == pytest.approx(expected, abs=1e-4)
        assert row[PROJECTIONS].item() == pytest.approx(seen.sum(), abs=1e-4)
        assert row[-1].sqrt().item() == pytest.approx(value.double().norm().item(), rel=1e-7)


@pytest.mark.parametrize("bounds", [(0, 25, 50), (0, 1, 50, 50), (0, 17, 34, 50), (0, 0, 0, 50)])
def test_sketches_of_shards_add_up_to_that_of_the_whole(bounds):
    """Shards may be uneven and empty; a parameter of fewer rows than shards has some without any."""
    values = tensors(1)
    total = torch.zeros_like(measured(values))
    for start, stop in pairwise(bounds):
        parts, shards = [], []
        for name, value in values.items():
            rows = value.shape[0] if value.dim() else 1
            first, last = (round(bound * rows / 50) for bound in (start, stop))
            parts.append(LocalPart(name, tuple(value.shape), first, last - first))
            shards.append(value[first:last] if value.dim() else value)
        total += measured_parts(parts, shards)
    assert torch.allclose(total, measured(values), rtol=1e-6, atol=1e-5)


def test_the_squares_of_projections_estimate_the_squared_norm():
    """Over many tensors of one kind the mean of 8 × 2000 squares is within 5 standard errors of ‖x‖²."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 0.1, 3.0, 1.0])
    names = [f"tensor {i}" for i in range(2_000)]
    result = measured_parts([LocalPart(name, (3, 4), 0, 3) for name in names], [x] * len(names))
    squares = result[:, :PROJECTIONS].square().mean(dim=1)
    error = squares.std().item() / math.sqrt(len(names))
    assert abs(squares.mean().item() - x.double().square().sum().item()) < 5 * error
    assert error < 0.03 * x.double().square().sum().item()


def test_the_distance_of_two_tensors_is_estimated_from_their_sketches():
    first, second = tensors(3), tensors(4)
    gap = (measured(first) - measured(second))[:, :PROJECTIONS].norm(dim=1) / math.sqrt(PROJECTIONS)
    for estimate, name in zip(gap.tolist(), SHAPES, strict=True):
        distance = (first[name] - second[name]).norm().item()
        assert 0.3 * distance < estimate < 2.5 * distance, name
    assert measured(first).tolist() == measured(first).tolist()


def test_one_moved_element_and_two_swapped_ones_show():
    values = tensors(5)
    for row, column in ((0, 0), (49, 5)):
        changed = {name: value.clone() for name, value in values.items()}
        changed["embedding"][row, column] += 1.0
        gap = (measured(values) - measured(changed))[0, :PROJECTIONS]
        assert gap.abs().tolist() == pytest.approx([1.0] * PROJECTIONS, abs=1e-4)
    swapped = values | {"embedding": values["embedding"].flip(0)}
    assert (measured(values) - measured(swapped))[0, :PROJECTIONS].norm() > 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so_and_harms_no_other_tensor(bad):
    values = tensors(6)
    values["weight"][2, 3] = bad
    result = measured(values)
    broken = ~result.isfinite().all(dim=1)
    assert [name for name, is_broken in zip(SHAPES, broken, strict=True) if is_broken] == ["weight"]
    sketch = sketches(result[1:2])[0]
    assert not math.isfinite(sketch.norm)
    assert not any(math.isfinite(projection) for projection in sketch.projections)


def test_bfloat16_and_float64_are_measured_as_they_are():
    values = {name: value.bfloat16() for name, value in tensors(7).items()}
    exact = {name: value.double() for name, value in values.items()}
    assert torch.allclose(measured(values), measured(exact), rtol=1e-6, atol=1e-5)
    tiny = {"weight": torch.full((6, 6), 1.0, dtype=torch.float64)}
    tiny["weight"][0, 0] += 1e-12
    assert measured(tiny)[0, PROJECTIONS].item() - 36 == pytest.approx(1e-12, rel=0.1)


def test_the_buffer_holds_what_was_loaded_scaled_and_subtracted():
    first, second = tensors(8), tensors(9)
    sketcher = Sketcher([LocalPart.of(name, value) for name, value in first.items()], CPU)
    sketcher.load(list(first.values()))
    sketcher.scale([2.0] * len(first))
    sketcher.subtract([value.bfloat16() for value in second.values()])
    expected = {name: 2 * value - second[name].bfloat16() for name, value in first.items()}
    assert all(torch.equal(held, value) for held, value in zip(sketcher.tensors, expected.values(), strict=True))
    heads = [value.flatten()[:HEAD].double() for value in expected.values()]
    assert torch.equal(sketcher.heads(), torch.cat(heads))
    assert torch.equal(sketcher.measure(), measured(expected))
