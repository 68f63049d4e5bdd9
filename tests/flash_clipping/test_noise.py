"""Counter-based noise depends on key, parameter and index alone; and when the engine adds it."""

import pytest
import torch
from flash_clipping.noise import CounterNoise
from flash_clipping.philox import normal_range, normals, philox

from tests.flash_clipping.model import make_data, make_model, make_private, quiet_engine, unwrapped

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("word", "key", "expected"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_known_answers_of_philox(word, key, expected):
    """The test vectors that are published with Random123."""
    found = philox((torch.tensor([word]),) * 4, key)
    assert tuple(int(w) for w in found) == expected


def test_any_cut_gives_the_same_numbers():
    whole = normal_range(5, 3, 0, 300_001, CPU)
    for first, count in ((0, 1), (1, 2), (131_071, 3), (7, 299_000), (300_000, 1), (4, 0)):
        assert torch.equal(normal_range(5, 3, first, count, CPU), whole[first : first + count])
    assert not torch.equal(normal_range(5, 4, 0, 100, CPU), whole[:100])
    assert not torch.equal(normal_range(6, 3, 0, 100, CPU), whole[:100])
    assert not torch.equal(normal_range(5, 3, 2**33, 100, CPU), whole[:100])


def test_normal():
    x = normal_range(11, 0, 0, 2_000_000, CPU).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(x.pow(power).mean() - moment) < 5 * (variance / len(x)) ** 0.5
    assert abs((x[::2] * x[1::2]).mean()) < 5 / (len(x) / 2) ** 0.5
    assert abs((x.abs() > 4).sum() - 6.334e-5 * len(x)) < 5 * (6.334e-5 * len(x)) ** 0.5


def test_tails_reach_beyond_nine():
    zero = torch.tensor([0])
    assert normals((zero, zero, zero, zero))[0, 0] > 9.4


def trained(engine, *, default_seed=0, **options):
    model = make_model()
    torch.manual_seed(default_seed)
    _, module, optimizer, criterion, _ = make_private(model, sigma=1.0, engine=engine, **options)
    ids, labels = make_data()[:8]
    for _ in range(2):
        optimizer.zero_grad()
        criterion(module(ids), labels).backward()
        optimizer.step()
    return optimizer, torch.cat([p.detach().flatten() for p in unwrapped(module).values()])


def test_whose_noise_is_added():
    stream = trained(quiet_engine(kernels="torch"))[1]
    assert torch.equal(trained(quiet_engine(kernels="torch", noise="opacus"))[1], stream)
    counter = trained(quiet_engine(kernels="torch", noise="counter"))[1]
    assert not torch.equal(counter, stream)
    assert torch.equal(trained(quiet_engine(kernels="torch", noise="counter"))[1], counter)
    for name in ("neither", "cuda"):
        with pytest.raises(ValueError, match="noise must be one of opacus, counter"):
            trained(quiet_engine(kernels="torch", noise=name))


def test_without_a_generator_each_step_draws_its_own():
    optimizer, first = trained(quiet_engine(kernels="torch"), noise_generator=None)
    assert isinstance(optimizer.counter, CounterNoise)
    assert torch.equal(trained(quiet_engine(kernels="torch"), noise_generator=None)[1], first)
    other = trained(quiet_engine(kernels="torch"), noise_generator=None, default_seed=1)[1]
    assert not torch.equal(other, first)
    tensors = [torch.zeros(50), torch.zeros(50)]
    optimizer.counter.add(tensors, 1.0)
    earlier = tensors[0].clone()
    optimizer.counter.add([tensors[0].zero_(), tensors[1]], 1.0)
    assert not torch.equal(tensors[0], earlier)
