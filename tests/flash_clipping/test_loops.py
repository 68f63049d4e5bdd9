"""Loops of any order of calls, composed at random: what a step applies is the clipped sum of its samples.

Each step that is not refused is compared with a float64 loop over the samples. A run of
`LOOPS=2000 pytest tests/flash_clipping/test_loops.py` takes 2,000 sequences; by default there are few.
"""

import os

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import nn

from flash_clipping import UnclippedGradientError
from tests.flash_clipping.model import make_private

LOOPS = int(os.environ.get("LOOPS", "15"))
WIDTH, CLASSES, BATCH = 4, 3, 4


class Loop(RuleBasedStateMachine):
    """The private objects, and what a step would have to apply."""

    @initialize(reduction=st.sampled_from(["mean", "sum"]))
    def start(self, reduction):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
        _, self.module, self.optimizer, self.criterion, self.loader = make_private(
            self.model, reduction=reduction, clip=0.4, lr=0.5, batch=BATCH
        )
        self.divisor = self.optimizer.expected_batch_size if reduction == "mean" else 1
        self.seed = 0
        self.pending: dict[str, torch.Tensor] = {}
        self.summed: dict[str, torch.Tensor] = {}
        self.samples = self.summed_samples = 0
        # What is seen at a backward, and what at a step alone.
        self.tainted = self.changed = False
        self.clipped = self.summed_clipped = None
        self.skipped = False

    def data(self, samples):
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        x = 3 * torch.randn(samples, WIDTH, generator=generator)
        return x, torch.randint(0, CLASSES, (samples,), generator=generator)

    @property
    def bound(self):
        return self.optimizer.max_grad_norm

    def oracle(self, x, y):
        """The clipped sum by name, of one autograd call a sample in float64."""
        values = {name: p.detach().double() for name, p in self.model.named_parameters()}
        trained = {name: values[name].requires_grad_() for name, p in self.model.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(value) for name, value in trained.items()}
        for sample, label in zip(x.double(), y, strict=True):
            output = torch.func.functional_call(self.model_of_oracle(), values, (sample[None],))
            gradients = torch.autograd.grad(F.cross_entropy(output, label[None]), list(trained.values()))
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            for name, g in zip(trained, gradients, strict=True):
                total[name] += (self.bound / (norm + 1e-6)).clamp(max=1) * g
        return total

    def model_of_oracle(self):
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)).double()

    @rule(samples=st.integers(0, 3))
    def backward(self, samples):
        x, y = self.data(samples)
        refused = self.tainted or (self.pending and self.clipped != self.bound)
        if not refused:
            # Frozen parameters that were pending are refused at the step alone.
            expected = self.oracle(x, y)
        try:
            self.criterion(self.module(x), y).backward()
        except (UnclippedGradientError, ValueError):
            assert refused
            return
        assert not refused
        for name, gradient in expected.items():
            self.pending[name] = self.pending.get(name, 0) + gradient
        self.clipped = self.bound
        self.samples += samples

    @rule(skip=st.booleans())
    def step(self, skip):
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer._step_skip_queue.clear()
        if skip:
            self.optimizer.signal_skip_step(True)
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        fits = self.pending.keys() == trained and (not self.summed or self.summed.keys() == trained)
        bounds = {self.bound, self.clipped, self.summed_clipped if self.summed else self.bound}
        right = fits and not self.tainted and not self.changed and len(bounds) == 1
        try:
            self.optimizer.step()
        except (UnclippedGradientError, ValueError):
            assert not right
            assert all(torch.equal(p, before[name]) for name, p in self.model.named_parameters())
            return
        assert right
        for name, gradient in self.pending.items():
            self.summed[name] = self.summed.get(name, 0) + gradient
        self.summed_samples += self.samples
        self.summed_clipped, self.skipped = self.clipped, skip
        self.pending, self.samples = {}, 0
        if skip:
            assert all(torch.equal(p, before[name]) for name, p in self.model.named_parameters())
            return
        applied = {n: (before[n] - p.detach()).double() / 0.5 * self.divisor for n, p in self.model.named_parameters()}
        norm = torch.stack([a.square().sum() for a in applied.values()]).sum().sqrt()
        assert norm <= self.summed_samples * self.bound * (1 + 1e-4) + 1e-5
        for name, found in applied.items():
            expected = self.summed.get(name, torch.zeros_like(found))
            assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())), name
        self.summed, self.summed_samples = {}, 0

    @rule(to_none=st.booleans())
    def zero_grad(self, to_none):
        self.optimizer.zero_grad(set_to_none=to_none)
        self.pending, self.samples, self.tainted, self.changed = {}, 0, False, False
        if not self.skipped:
            self.summed, self.summed_samples = {}, 0

    @rule()
    def zero_grad_of_the_module(self):
        plain, self.tainted, self.changed = self.tainted, False, False
        self.module.zero_grad()
        self.pending, self.samples = {}, 0
        # What a plain loss left is known until the optimizer's zero_grad.
        self.tainted = plain and self.module.probe.grad is not None

    @rule()
    def plain_loss(self):
        x, y = self.data(2)
        F.cross_entropy(self.module(x), y).backward()
        self.tainted = True

    @precondition(lambda self: self.pending)
    @rule(norm=st.sampled_from([0.01, 1e6]))
    def clip_grad_norm(self, norm):
        nn.utils.clip_grad_norm_(self.model.parameters(), norm)
        self.tainted = True

    @precondition(lambda self: self.pending)
    @rule()
    def change_through_data(self):
        for p in self.model.parameters():
            if p.grad is not None and p.grad.any():
                p.grad.data.mul_(3)
                self.changed = True

    @rule(gamma=st.sampled_from([0.5, 2.0]))
    def move_the_bound(self, gamma):
        self.optimizer.max_grad_norm = min(max(self.bound * gamma, 0.1), 1.6)

    @rule(layer=st.sampled_from([0, 2]), trained=st.booleans())
    def freeze_or_unfreeze(self, layer, trained):
        other = self.model[2 - layer]
        if trained or other.weight.requires_grad:
            self.model[layer].requires_grad_(trained)

    @rule()
    def evaluate(self):
        with torch.no_grad():
            self.module(self.data(2)[0])
        self.module(self.data(1)[0])  # a forward that is thrown away

    @rule(training=st.booleans())
    def switch_mode(self, training):
        self.model[0].train(training)


def test_random_loops():
    run_state_machine_as_test(
        Loop,
        settings=settings(
            max_examples=LOOPS, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
