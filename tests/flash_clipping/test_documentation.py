"""The programs in docs/flash.md run, and what they define is right."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from flash_clipping import FLASH_NORM_SAMPLERS
from tests.flash_clipping.model import check_gradients, make_private, oracle, relative

TOP = Path(__file__).parents[2]


@pytest.fixture
def documented():
    """What the Python blocks of the page define, run one after the other."""
    names = {"__name__": "documented"}
    registered = dict(FLASH_NORM_SAMPLERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in re.findall(r"```python\n(.*?)```", (TOP / "docs/flash.md").read_text(), re.S):
            exec(block, names)
    yield names
    FLASH_NORM_SAMPLERS.clear()
    FLASH_NORM_SAMPLERS.update(registered)


def test_the_quick_start_trains(documented):
    assert len(documented["model"].per_sample_gradient_norms) > 0
    assert documented["engine"].get_epsilon(delta=1e-5) > 0


def test_the_documented_sampler_is_exact(documented):
    torch.manual_seed(0)
    model = nn.Sequential(documented["Scale"](6), nn.Tanh(), documented["Scale"](6), nn.Flatten(), nn.Linear(18, 4))
    x, labels = torch.randn(5, 3, 6), torch.arange(5) % 4
    expected, total = oracle(model, x, labels)
    _, module, _, criterion, _ = make_private(model)
    criterion(module(x), labels).backward()
    assert module.samplers()["0"] == "flash"
    assert relative(module.per_sample_gradient_norms, expected) < 1e-5
    check_gradients({name: p.grad for name, p in model.named_parameters()}, total)


def test_the_page_is_about_the_library_alone():
    assert not re.findall("clipwatch", (TOP / "docs/flash.md").read_text(), re.I)
    sources = [*(TOP / "flash_clipping/src").rglob("*.py"), TOP / "flash_clipping/CHANGELOG.md"]
    named = [path.name for path in sources if re.search(r"clipwatch|\bworker\b|\bservice\b", path.read_text(), re.I)]
    assert not named
