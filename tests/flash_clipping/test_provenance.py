"""A step applies the clipped sum of its samples, or raises and says what to do."""

import copy
import io
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from opacus.schedulers import ExponentialGradClip
from torch import nn

from flash_clipping import NonFiniteGradientError, UnclippedGradientError
from tests.flash_clipping.model import check_gradients, make_private, oracle, quiet_engine, relative, unwrapped

SAMPLES, WIDTH, CLASSES, BOUND = 6, 5, 4, 0.3


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*(layers or (nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))))


def batch(*shape, samples=SAMPLES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *(shape or (WIDTH,)), generator=generator)
    return x, torch.randint(0, CLASSES, (samples,), generator=generator)


def private(model, **options):
    return make_private(model, clip=BOUND, reduction="sum", lr=0.1, **options)[1:4]


def applied(module):
    return {name: p.grad for name, p in unwrapped(module).items() if p.grad is not None}


def check_step(module, optimizer, expected):
    optimizer.step()
    check_gradients(applied(module), expected)


# Gradients that are not clipped sums


def plain_loss(module, optimizer, criterion, x, y):
    F.cross_entropy(module(x), y).backward()


def second_criterion(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    F.mse_loss(module(x), torch.zeros(len(x), CLASSES)).backward()


def clip_grad_norm(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    nn.utils.clip_grad_norm_(module.parameters(), 100.0)


def clip_grad_value(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    nn.utils.clip_grad_value_(module.parameters(), 1e-3)


def through_data(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    for p in module.parameters():
        p.grad.data.mul_(0.5)


def unscale(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    gradients = [p.grad for p in module.parameters()]
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, torch.zeros(1), torch.full((1,), 2.0))


def another_tensor(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    first = next(module.parameters())
    first.grad = 100 * first.grad


def left_over(module, optimizer, criterion, x, y):
    next(module.parameters()).grad = torch.ones(WIDTH, WIDTH)


def nothing(module, optimizer, criterion, x, y):
    pass


def cleared(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    module.zero_grad()


def another_parameter(module, optimizer, criterion, x, y):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    criterion(module(x), y).backward()


def frozen_before_the_step(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    next(module.parameters()).requires_grad_(False)


def bound_moved_before_the_step(module, optimizer, criterion, x, y):
    criterion(module(x), y).backward()
    optimizer.max_grad_norm /= 10


FOREIGN = r"in \.grad: not a clipped sum"
TRAPS = {
    plain_loss: "backward of a plain loss",
    second_criterion: "backward of a plain loss",
    clip_grad_norm: FOREIGN,
    clip_grad_value: FOREIGN,
    through_data: "was changed between backward and step",
    unscale: "was changed between backward and step",
    another_tensor: FOREIGN,
    left_over: FOREIGN,
    nothing: "without a backward",
    cleared: "without a backward",
    another_parameter: "no clipped gradient for a parameter of shape",
    frozen_before_the_step: r"0\.weight was frozen between backward and step",
    bound_moved_before_the_step: "were clipped with 0.3",
}


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_step_refuses(trap):
    module, optimizer, criterion = private(net())
    before = copy.deepcopy(unwrapped(module))
    trap(module, optimizer, criterion, *batch())
    with pytest.raises((UnclippedGradientError, ValueError), match=TRAPS[trap]) as refused:
        optimizer.step()
    assert len(str(refused.value).splitlines()) <= 10
    assert all(torch.equal(p, before[name]) for name, p in unwrapped(module).items())


def test_the_wrapped_optimizer_cannot_step_by_itself():
    module, optimizer, criterion = private(net())
    x, y = batch()
    criterion(module(x), y).backward()
    with pytest.raises(UnclippedGradientError, match="stepped by itself, without noise"):
        optimizer.original_optimizer.step()


def test_zero_grad_makes_a_refused_loop_right_again():
    x, y = batch()
    module, optimizer, criterion = private(net())
    second_criterion(module, optimizer, criterion, x, y)
    with pytest.raises(UnclippedGradientError, match="plain loss"):
        optimizer.step()
    optimizer.zero_grad()
    criterion(module(x), y).backward()
    check_step(module, optimizer, oracle(net(), x, y, BOUND)[1])


# Loops


def test_three_backwards_add_up_and_so_do_virtual_steps_around_them():
    x, y = batch()
    module, optimizer, criterion = private(net())
    for part, skip in ((slice(0, 1), None), (slice(1, 3), True), (slice(3, 4), None), (slice(4, 6), False)):
        criterion(module(x[part]), y[part]).backward()
        if skip is not None:
            optimizer.signal_skip_step(skip)
            optimizer.step()
            if skip:
                optimizer.zero_grad()
    check_gradients(applied(module), oracle(net(), x, y, BOUND)[1])


def test_zero_grad_between_backwards_drops_the_first():
    x, y = batch()
    module, optimizer, criterion = private(net())
    criterion(module(x), y).backward()
    optimizer.zero_grad(set_to_none=False)
    criterion(module(x[:2]), y[:2]).backward()
    check_step(module, optimizer, oracle(net(), x[:2], y[:2], BOUND)[1])


def test_a_loop_without_zero_grad_applies_each_batch_once():
    x, y = batch()
    module, optimizer, criterion = private(net())
    for p in optimizer.param_groups:
        p["lr"] = 0.0
    for part in (slice(0, 3), slice(3, 6)):
        criterion(module(x[part]), y[part]).backward()
        check_step(module, optimizer, oracle(net(), x[part], y[part], BOUND)[1])


def test_a_failed_backward_leaves_earlier_sums():
    x, y = batch()
    module, optimizer, criterion = private(net())
    criterion(module(x), y).backward()
    with pytest.raises(ValueError, match="losses"):
        criterion(module(x).repeat(2, 1), y.repeat(2)).backward()
    check_step(module, optimizer, oracle(net(), x, y, BOUND)[1])


def test_backwards_of_poisson_batches_do_not_add_up():
    module, _, criterion = private(net(), noise_generator=None)
    module.forbid_grad_accumulation()
    x, y = batch()
    criterion(module(x), y).backward()
    with pytest.raises(ValueError, match="BatchMemoryManager"):
        criterion(module(x), y).backward()


def test_a_scheduler_of_the_bound_moves_clipping_and_noise():
    x, y = batch()
    module, optimizer, criterion = private(net())
    scheduler = ExponentialGradClip(optimizer, gamma=0.1)
    for step in range(3):
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        current = copy.deepcopy(module._module)
        check_step(module, optimizer, oracle(current, x, y, BOUND * 0.1**step)[1])
        scheduler.step()


@pytest.mark.parametrize("start", [False, True])
def test_freezing_and_unfreezing(start):
    x, y = batch()
    model, reference = net(), net()
    model[0].requires_grad_(start)
    module, optimizer, criterion = private(model)
    for frozen in (not start, start, not start):
        model[0].requires_grad_(frozen)
        reference[0].requires_grad_(frozen)
        reference.load_state_dict(model.state_dict())
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        check_step(module, optimizer, oracle(reference, x, y, BOUND)[1])


@pytest.mark.parametrize("part", ["all", "first"])
def test_layers_in_eval_mode_are_trained(part):
    x, y = batch()
    module, optimizer, criterion = private(net())
    (module if part == "all" else module._module[0]).eval()
    criterion(module(x), y).backward()
    check_step(module, optimizer, oracle(net(), x, y, BOUND)[1])


# Uses of weights


class Uses(nn.Module):
    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.use = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES), use

    def forward(self, x):
        return self.use(self, x)


USES = {
    "functional, beside the call": lambda m, x: m.b(m.a(x) + F.linear(x, m.a.weight)),
    "tied to an output": lambda m, x: m.b(F.linear(m.a(x), m.a.weight.t())),
    "a bias that is read": lambda m, x: m.b(m.a(x)) + m.b.bias,
    "a norm of the weights": lambda m, x: m.b(m.a(x)) * (1 + m.a.weight.norm()),
}


@pytest.mark.parametrize("use", USES)
def test_a_use_of_a_weight_outside_of_its_call_is_refused(use):
    module, _, criterion = private(Uses(USES[use]))
    x, y = batch()
    with pytest.raises(UnclippedGradientError, match=r"[ab]\.(weight|bias): used outside of its layer's call"):
        criterion(module(x), y).backward()
    assert not applied(module)


def test_a_penalty_on_weights_is_refused():
    module, _, criterion = private(net())
    x, y = batch()
    loss = criterion(module(x), y)
    loss.loss_per_sample = loss.loss_per_sample + 0.1 * module._module[0].weight.square().sum()
    with pytest.raises(UnclippedGradientError, match=r"0\.weight: used outside"):
        loss.backward()


def test_a_hook_on_a_parameter_is_refused():
    model = net()
    model[0].weight.register_hook(lambda gradient: 100 * gradient)
    module, _, criterion = private(model)
    x, y = batch()
    with pytest.raises(UnclippedGradientError, match=r"0\.weight: a hook on the gradient"):
        criterion(module(x), y).backward()


def test_public_modules_and_inputs_get_their_gradient():
    torch.manual_seed(3)
    public = nn.Linear(WIDTH, WIDTH)
    module, optimizer, criterion = private(net())
    x, y = batch()
    x.requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(net()(public(x)), y, reduction="sum"), (x, public.weight))
    criterion(module(public(x)), y).backward()
    assert relative(x.grad, expected[0]) < 1e-5
    assert relative(public.weight.grad, expected[1]) < 1e-5
    optimizer.step()


# Samples


class Between(nn.Module):
    """Something between two layers."""

    def __init__(self, change, after=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.change, self.after = change, after

    def forward(self, x):
        return self.after(self.b(self.change(self.a(x))))


MIXED = {
    "batch statistics": (Between(lambda x: x - x.mean(0)), (WIDTH,)),
    "samples in another order": (Between(lambda x: x.flip(0)), (WIDTH,)),
    "rolled by one": (Between(lambda x: x.roll(1, 0)), (WIDTH,)),
    "two sequences in one": (Between(lambda x: torch.tanh(x), lambda x: x.mean(0)), (SAMPLES, WIDTH)),
    "the last of as many tokens": (Between(lambda x: x, lambda x: x[-1]), (SAMPLES, WIDTH)),
}


@pytest.mark.parametrize("kind", MIXED)
def test_samples_that_are_mixed_are_refused(kind):
    model, shape = MIXED[kind]
    module, _, criterion = private(model)
    with pytest.raises(ValueError, match="the loss of one sample depends on other rows"):
        criterion(module(batch(*shape)[0]), batch()[1]).backward()


def test_inputs_that_are_mixed_before_the_first_layer_are_refused():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return self.head((x - x.mean(0)) / x.std(0))

    module, _, criterion = private(Normalised())
    x, y = batch()
    with pytest.raises(ValueError, match="the model's input"):
        criterion(module(x), y).backward()


def test_a_later_batch_whose_shape_hides_the_layout_is_looked_at():
    """Three sequences of seven tokens with the tokens first are counted; three of three are not told by their shape."""
    module, _, criterion = private(Between(torch.tanh, lambda x: x.sum(0)))
    with pytest.raises(ValueError, match="but there are 3 losses"):
        criterion(module(torch.randn(7, 3, WIDTH)), torch.zeros(3, dtype=torch.long)).backward()
    with pytest.raises(ValueError, match="depends on other rows"):
        criterion(module(torch.randn(3, 3, WIDTH)), torch.zeros(3, dtype=torch.long)).backward()


def engine(**options):
    return quiet_engine(kernels="torch", **options)


FLATTENED = {
    "tokens": lambda m, x: m.b(m.a(x.flatten(0, 1))).view(len(x), -1, CLASSES).mean(1),
    "two views": lambda m, x: m.b(m.a(torch.cat([x[:, 0], x[:, 1]]))).view(2, len(x), -1).mean(0),
    "one for all": lambda m, x: m.b(m.a(x[:1])).mean(1).expand(len(x), -1),
}


@pytest.mark.parametrize("kind", FLATTENED)
def test_another_number_of_samples_is_refused(kind):
    module, _, criterion = private(Uses(FLATTENED[kind]))
    with pytest.raises(ValueError, match=r"b \(Linear\) has an output of shape .*, but there are 6 losses"):
        criterion(module(batch(3, WIDTH)[0]), batch()[1]).backward()


def test_more_losses_than_samples_name_shape():
    module, _, criterion = private(net())
    x, _ = batch(3, WIDTH)
    y = torch.zeros(SAMPLES * 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"criterion\(\.\.\., shape=\(batch, tokens\)\)"):
        criterion(module(x).flatten(0, 1), y).backward()


def test_never_verifying_is_a_choice():
    model, shape = MIXED["batch statistics"]
    module, _, criterion = private(copy.deepcopy(model), engine=engine(verify="never"))
    criterion(module(batch(*shape)[0]), batch()[1]).backward()
    with pytest.raises(ValueError, match="verify must be one of first, always, never"):
        private(net(), engine=engine(verify="sometimes"))


# Calls that torch.func repeats


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH))

    def forward(self, x, scale=1.0, *, mask=None, tables=(None, None), mode="plain"):
        y = x @ self.weight * scale
        if mask is not None:
            y = y * mask
        if tables[1] is not None:
            y = y + tables[0] * tables[1]
        return -y if mode == "negative" else y


CALLS = {
    "a number": lambda m, x: m(x, 10.0),
    "a keyword": lambda m, x: m(x, scale=3.0, mode="negative"),
    "a mask for each sample": lambda m, x: m(x, mask=(x > 0).to(x.dtype)),
    "a mask for all": lambda m, x: m(x, mask=torch.arange(WIDTH).to(x.dtype)),
    "tensors in a tuple": lambda m, x: m(x, tables=(x.cos(), torch.ones(1, WIDTH, dtype=x.dtype))),
}


class Called(nn.Module):
    def __init__(self, call):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head, self.call = Scaled(), nn.Linear(WIDTH, CLASSES), call

    def forward(self, x):
        return self.head(self.call(self.layer, x))


@pytest.mark.parametrize("call", CALLS)
def test_calls_are_repeated_with_their_arguments(call):
    x, y = batch()
    module, optimizer, criterion = private(Called(CALLS[call]))
    criterion(module(x), y).backward()
    check_step(module, optimizer, oracle(Called(CALLS[call]), x, y, BOUND)[1])


def test_an_attribute_that_changes_later_counts():
    x, y = batch()
    model, reference = Called(CALLS["a number"]), Called(CALLS["a number"])
    module, optimizer, criterion = private(model)
    model.layer.forward = reference.layer.forward = partial(Scaled.forward, model.layer, scale=2.0)
    model.call = lambda m, x: m(x)
    criterion(module(x), y).backward()
    reference = Called(lambda m, x: m(x, 2.0))
    check_step(module, optimizer, oracle(reference, x, y, BOUND)[1])


def test_a_layer_that_permutes_samples_inside_is_refused():
    class Permuting(Scaled):
        def forward(self, x):
            return super().forward(x.flip(0))

    module, _, criterion = private(nn.Sequential(Permuting(), nn.Linear(WIDTH, CLASSES)))
    x, y = batch()
    with pytest.raises(ValueError, match=r"mixes the samples|depends on other rows"):
        criterion(module(x), y).backward()


# Gradients that are not finite


def with_infinity():
    x, y = batch()
    x[2] = float("inf")
    return x, y


def test_a_sample_that_is_not_finite_is_refused_at_the_step():
    module, optimizer, criterion = private(net())
    before = copy.deepcopy(unwrapped(module))
    x, y = with_infinity()
    criterion(module(x), y).backward()
    with pytest.raises(NonFiniteGradientError, match='nonfinite="drop"'):
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in unwrapped(module).items())


def test_a_sample_that_is_not_finite_is_dropped():
    module, optimizer, criterion = private(net(), engine=engine(nonfinite="drop"))
    x, y = with_infinity()
    criterion(module(x), y).backward()
    kept = [0, 1, 3, 4, 5]
    check_step(module, optimizer, oracle(net(), x[kept], y[kept], BOUND)[1])
    assert int(module.dropped_samples) == 1


# What is done with models and losses


def test_copies_and_pickles_of_the_model():
    x, y = batch()
    module, optimizer, criterion = private(net())
    criterion(module(x), y).backward()
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    copies = [copy.deepcopy(module), torch.optim.swa_utils.AveragedModel(module).module]
    copies.append(torch.load(stream, weights_only=False))
    for copied in copies:
        assert torch.equal(copied(x), module(x))
        assert torch.equal(copy.deepcopy(copied)(x), module(x))
    check_step(module, optimizer, oracle(net(), x, y, BOUND)[1])


def test_in_place_operations_after_layers():
    layers = (nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, CLASSES), nn.Hardtanh(inplace=True))
    x, y = batch()
    module, optimizer, criterion = private(net(*copy.deepcopy(layers)))
    criterion(module(x), y).backward()
    check_step(module, optimizer, oracle(net(*layers), x, y, BOUND)[1])


def test_attributes_of_the_model_can_be_read():
    model = net()
    model.config = {"width": WIDTH}
    module, *_ = private(model)
    assert module.config is model.config
    assert not hasattr(module, "configuration")


def test_the_loss_is_a_number_too():
    module, _, criterion = private(net())
    x, y = batch()
    loss = criterion(module(x), y)
    value = F.cross_entropy(net()(x), y, reduction="sum").item()
    assert float(loss) == loss.item() == pytest.approx(value)
    assert f"{loss:.2f}" == f"{value:.2f}"
    assert loss < value + 1
    assert loss > value - 1
    assert loss.to(torch.float64).dtype == torch.float64
    assert copy.deepcopy(loss).item() == loss.item()
    with pytest.raises(AttributeError, match=r"has no 'grad_fn'.*detach\(\)"):
        _ = loss.grad_fn
