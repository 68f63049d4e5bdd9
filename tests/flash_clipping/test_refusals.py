"""What Flash Clipping refuses, and what of Opacus it leaves alone."""

import subprocess
import sys

import opacus
import pytest
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import nn
from torch.nn import functional as F

from flash_clipping import UnclippedGradientError
from tests.flash_clipping.model import make_data, make_model, make_private, quiet_engine


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(4, 6), nn.Linear(6, 4, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids):
        return self.head(self.token(ids)).mean(1)


class Functional(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(self.first(x), self.second.weight)


def backward(model, x, labels=None):
    _, module, _, criterion, _ = make_private(model)
    criterion(module(x), torch.zeros(len(x), dtype=torch.long) if labels is None else labels).backward()


def test_tied_parameters():
    with pytest.raises(NotImplementedError, match=r"token\.weight and head\.weight are one parameter"):
        make_private(Tied())


def test_a_convolution_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 2, 3), nn.Linear(2, 4)

        def forward(self, x):
            return self.head(self.conv(self.conv(x)).mean(2))

    with pytest.raises(NotImplementedError, match=r"conv \(Conv1d\) was called more than once in a forward"):
        backward(Twice(), torch.randn(3, 2, 9))


def test_a_weight_used_without_its_layer():
    with pytest.raises(UnclippedGradientError, match=r"second\.weight: used outside of its layer's call"):
        backward(Functional(), torch.randn(3, 4))


def test_a_layer_that_is_not_called():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.more = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            return self.head(x)

    message = r"no per-sample norm for more\.0\.weight, more\.0\.bias, more\.1\.weight and 1 more: the layer was not"
    with pytest.raises(UnclippedGradientError, match=message):
        backward(Unused(), torch.randn(3, 4))


def test_layers_that_disagree_about_the_batch():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.head = nn.Embedding(5, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(x + self.position(torch.arange(5))).mean(1)

    with pytest.raises(ValueError, match="first dimension of every layer's input"):
        backward(Broadcast(), torch.randn(3, 5, 4))


def test_a_loss_that_is_not_per_sample():
    with pytest.raises(ValueError, match="one loss per sample"):
        backward(nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4, 4), torch.zeros(3, 4, dtype=torch.long))


def test_triton_on_the_cpu():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=r'kernels="triton" cannot run on cpu tensors; choose kernels="torch"'):
        make_private(make_model(), kernels="triton")
    assert quiet_engine().kernels == "triton"


@pytest.mark.parametrize(
    ("engine", "arguments", "message"),
    [
        ({"kernels": "cuda"}, {}, "kernels must be one of triton, torch"),
        ({"input_precision": "tf32"}, {}, "input_precision must be one of ieee, tf32x3"),
        ({}, {"clipping": "per_layer"}, "supports clipping"),
        ({}, {"clip": [1.0, 2.0]}, "supports clipping"),
        ({}, {"wrap_model": False}, "wrap_model=False"),
        ({}, {"mode": "flash_fsdp"}, "root was given to fully_shard"),
    ],
)
def test_arguments(engine, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_private(make_model(), engine=quiet_engine(**{"kernels": "torch", **engine}), **arguments)


def test_a_module_wrapped_in_another_way():
    engine = quiet_engine(kernels="torch")
    _, module, *_ = make_private(make_model(), engine=engine)
    assert make_private(module, engine=engine)[1] is module
    with pytest.raises(ValueError, match="wrapped already"):
        make_private(module, clip=2.0)
    with pytest.raises(ValueError, match="wrapped already"):
        make_private(GradSampleModule(make_model()))


def test_a_memory_budget_in_another_mode():
    with pytest.raises(ValueError, match='grad_sample_mode="ghost" has no memory_budget'):
        make_private(make_model(), "ghost", memory_budget=1)


def test_other_modes_go_to_opacus_untouched():
    model = make_model()
    engine = quiet_engine(kernels="torch")
    loader = torch.utils.data.DataLoader(make_data(), batch_size=8)
    arguments = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "data_loader": loader}
    private = engine.make_private(module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
    assert len(private) == 3
    assert type(private[0]) is GradSampleModule
    assert type(private[1]) is opacus.optimizers.DPOptimizer
    model = make_model()
    private = make_private(model, "ghost", engine=engine)
    assert type(private[1]) is GradSampleModuleFastGradientClipping
    with pytest.raises(ValueError, match="Unexpected grad_sample_mode"):
        make_private(make_model(), "nonsense", engine=engine)


PICTURE = """
import opacus, sys, warnings
import opacus.grad_sample, opacus.optimizers, opacus.utils.fast_gradient_clipping_utils
warnings.simplefilter("ignore")
def picture():
    found = {}
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] != "opacus":
            continue
        for key, value in list(vars(module).items()):
            found[name, key] = id(value)
            if isinstance(value, type) and value.__module__.startswith("opacus"):
                members = {k: id(v) for k, v in vars(value).items() if not k.startswith(("_abc", "__"))}
                found.update({(name, key, k): v for k, v in members.items()})
                for registry in ("GRAD_SAMPLERS", "NORM_SAMPLERS"):
                    found[name, key, registry, 0] = tuple(getattr(value, registry, {}).items())
    return found
before = picture()
"""
USE = """
import torch
from flash_clipping import PrivacyEngine
model = torch.nn.Sequential(torch.nn.Linear(3, 3))
data = torch.utils.data.TensorDataset(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
module, optimizer, criterion, loader = PrivacyEngine(kernels="torch").make_private(
    module=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0,
    data_loader=torch.utils.data.DataLoader(data), grad_sample_mode="flash")
for x, y in loader:
    criterion(module(x), y).backward(); optimizer.step()
"""
COMPARE = """
after = picture()
assert {k: after[k] for k in before} == before
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_nothing_of_opacus_is_patched_in_place():
    """Importing and using flash_clipping leaves every class, dict and function of Opacus as it was."""
    run(PICTURE + USE + COMPARE)


def test_without_triton():
    """Where triton is missing the torch kernels work, and asking for triton says what to do."""
    run(
        "import sys, warnings; sys.modules['triton'] = None; warnings.simplefilter('ignore')\n"
        + "import importlib.util; find = importlib.util.find_spec\n"
        + "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        + USE
        + "from flash_clipping import get_backend\n"
        + "try: get_backend('triton')\n"
        + "except ImportError as error: assert 'choose kernels=\"torch\"' in str(error)\n"
        + "else: raise AssertionError\n"
    )
