"""The arguments of `make_private`, and what it returns."""

import inspect

import opacus
import pytest
import torch

from flash_clipping import PrivacyEngine, PrivateTraining
from tests.flash_clipping.model import make_data, make_model, make_private, quiet_engine

BOTH = ["make_private", "make_private_with_epsilon"]


def arguments(function: str, **more):
    model = make_model()
    noise = {"noise_multiplier": 1.0}
    if function == "make_private_with_epsilon":
        noise = {"target_epsilon": 3.0, "target_delta": 1e-5, "epochs": 1}
    given = {
        "module": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "data_loader": torch.utils.data.DataLoader(make_data(), batch_size=6),
        "max_grad_norm": 1.0,
        "grad_sample_mode": "flash",
    }
    return given | noise | more


def call(function, **more):
    return getattr(quiet_engine(kernels="torch", accountant="rdp"), function)(**arguments(function, **more))


@pytest.mark.parametrize("function", BOTH)
def test_every_argument_of_opacus_is_named(function):
    ours = inspect.signature(getattr(PrivacyEngine, function)).parameters
    theirs = inspect.signature(getattr(opacus.PrivacyEngine, function)).parameters
    assert ours.keys() >= theirs.keys() - {"kwargs"}
    for name, parameter in theirs.items():
        if name not in ("criterion", "kwargs"):
            assert ours[name].default == parameter.default, name
    assert all(p.annotation is not inspect.Parameter.empty for name, p in ours.items() if name != "self")


@pytest.mark.parametrize("mode", ["flash", "ghost", "hooks"])
@pytest.mark.parametrize("function", BOTH)
def test_a_misspelt_argument_is_an_error(function, mode):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'poison_sampling'; did you mean 'poisson_samp"):
        call(function, grad_sample_mode=mode, poison_sampling=False)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'frobnicate'$"):
        call(function, grad_sample_mode=mode, frobnicate=1)


def test_a_misspelt_argument_of_the_engine_is_an_error():
    with pytest.raises(TypeError, match="kernel"):
        PrivacyEngine(kernel="torch")


@pytest.mark.parametrize("function", BOTH)
def test_what_is_returned_has_names_and_unpacks(function):
    private = call(function, poisson_sampling=False)
    assert isinstance(private, PrivateTraining)
    module, optimizer, criterion, loader = private
    assert private.module is module
    assert private.optimizer is optimizer
    assert private.criterion is criterion
    assert private.data_loader is loader


def test_options_of_an_accountant_are_passed_on():
    noisy = call("make_private_with_epsilon", alphas=[16.0]).optimizer.noise_multiplier
    assert noisy > call("make_private_with_epsilon").optimizer.noise_multiplier


def test_an_argument_that_this_opacus_does_not_have():
    known = inspect.signature(opacus.PrivacyEngine.make_private).parameters
    for name in {"normalize_clipping", "rand_on_empty"} - known.keys():
        with pytest.raises(TypeError, match=f"Opacus {opacus.__version__} has no argument '{name}'"):
            make_private(make_model(), "hooks", **{name: True})


def test_what_the_flash_modes_refuse():
    with pytest.raises(ValueError, match="normalize_clipping=True"):
        call("make_private", normalize_clipping=True)
