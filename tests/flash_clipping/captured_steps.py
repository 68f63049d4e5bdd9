"""Steps of `CapturedStep` held to a float64 loop: random batch sizes, settings and schedules, on any device."""

import itertools

import torch
import torch.nn.functional as F
from flash_clipping.captured import CapturedStep
from hypothesis import strategies as st
from torch import nn

from tests.flash_clipping.model import CLASSES, TOKENS, VOCABULARY, make_model, make_private, oracle, quiet_engine

PHYSICAL = 4

settings = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(0, 2 * PHYSICAL), min_size=4, max_size=6),
        "reduction": st.sampled_from(["mean", "sum"]),
        "clips": st.sampled_from([(0.5,), (0.1, 10.0), (1e-3, 1.0, 100.0)]),
        "rates": st.sampled_from([(0.1,), (0.1, 0.01)]),
        "seed": st.integers(0, 2**31 - 1),
    }
)


def batches(sizes: list[int], seed: int, device: torch.device):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        ids = torch.randint(0, VOCABULARY, (size, TOKENS), generator=generator)
        yield ids.to(device), torch.randint(0, CLASSES, (size,), generator=generator).to(device)


def check(device: torch.device, kernels: str, capture: bool, given: dict) -> None:
    """Takes noiseless steps of plain SGD and compares norms and parameters of each with the float64 loop."""
    expected = make_model(given["seed"] % 97).double()
    engine = quiet_engine(kernels=kernels, noise="counter")
    _, module, optimizer, criterion, *_ = make_private(
        make_model(given["seed"] % 97).to(device), engine=engine, reduction=given["reduction"], noise_generator=None
    )
    step = CapturedStep(module, optimizer, criterion, batch_size=PHYSICAL, capture=capture)
    divisor = optimizer.expected_batch_size if given["reduction"] == "mean" else 1
    clips, rates = itertools.cycle(given["clips"]), itertools.cycle(given["rates"])
    for ids, labels in batches(given["sizes"], given["seed"], device):
        optimizer.max_grad_norm, optimizer.param_groups[0]["lr"] = next(clips), next(rates)
        result = step(ids, labels)
        norms, total = oracle(expected, ids.cpu(), labels.cpu(), optimizer.max_grad_norm)
        losses = F.cross_entropy(expected(ids.cpu()), labels.cpu(), reduction="none") if len(ids) else torch.zeros(0)
        close(result.norms, norms)
        close(result.losses, losses)
        with torch.no_grad():
            for name, p in expected.named_parameters():
                p -= optimizer.param_groups[0]["lr"] / divisor * total[name]
        for p, q in zip(module.parameters(), expected.parameters(), strict=True):
            close(p, q)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-3).item() if expected.numel() else 1.0
    torch.testing.assert_close(found.detach().double().cpu(), expected.detach().double(), rtol=0, atol=1e-5 * scale)


def trained(device: torch.device, kernels: str, capture: bool, sizes: list[int], **options) -> list[torch.Tensor]:
    """Parameters after noisy steps."""
    torch.manual_seed(3)
    engine = quiet_engine(kernels=kernels, noise="counter")
    model: nn.Module = make_model().to(device)
    given = {"optimizer": options["optimizer"](model.parameters())} if "optimizer" in options else {}
    _, module, optimizer, criterion, *_ = make_private(
        model, engine=engine, sigma=1.0, noise_generator=torch.Generator(device).manual_seed(5), **given
    )
    step = CapturedStep(module, optimizer, criterion, batch_size=PHYSICAL, capture=capture)
    for ids, labels in batches(sizes, 11, device):
        step(ids, labels)
    return [p.detach().clone() for p in module.parameters()]
