"""Faults of the accountant and of the schedule of σ."""

from worker.selftest import edit, fault

HOOK = "opacus.accountants.accountant:IAccountant.get_optimizer_hook_fn"
ENGINE = "opacus.privacy_engine:PrivacyEngine.make_private"


@fault("opacus accountant", step=None, suites=("clipping", "privacy"))
def epsilon_of_another_sigma():
    """ε is reckoned from σ·C in place of σ."""
    edit(
        HOOK,
        ("noise_multiplier=optim.noise_multiplier", "noise_multiplier=optim.noise_multiplier * optim.max_grad_norm"),
    )


@fault("opacus PrivacyEngine", step=None)
def epsilon_of_another_sample_rate():
    """ε is reckoned as if an epoch had one batch more."""
    edit(ENGINE, ("(sample_rate=sample_rate)", "(sample_rate=1 / (len(data_loader) + 1))"))


@fault("opacus PrivacyEngine (modes × several ranks)", step=None)
def epsilon_of_one_ranks_rate():
    """ε is reckoned with the sampling rate divided by the number of ranks."""
    rate = "(sample_rate=sample_rate / (torch.distributed.get_world_size() if distributed else 1))"
    edit(ENGINE, ("(sample_rate=sample_rate)", rate))


@fault("opacus accountant", step=None)
def epsilon_without_first_step():
    """The accountant does not count the first step."""
    edit(
        "opacus.accountants.prv:PRVAccountant.step",
        (
            "    else:\n        self.history.append((noise_multiplier, sample_rate, 1))",
            "    else:\n        self.history.append((noise_multiplier, sample_rate, 0))",
        ),
    )


@fault("opacus optimizer (ghost, flash)", step=None, suites=("clipping",))
def epsilon_of_every_backward():
    """The accountant counts every backward pass of a virtual step as a step."""
    edit(
        "opacus.optimizers.optimizer_fast_gradient_clipping:DPOptimizerFastGradientClipping.pre_step",
        (
            "    if self._check_skip_next_step():\n",
            "    if self._check_skip_next_step():\n        self.step_hook(self)\n",
        ),
    )


@fault("opacus accountant", step=None, suites=("privacy",))
def epsilon_of_first_sigma():
    """ε is reckoned from the first σ also after it has decayed."""
    edit(
        HOOK,
        (
            "def hook_fn(optim: DPOptimizer):",
            "seen = []\n\n    def hook_fn(optim: DPOptimizer):\n        seen.append(optim.noise_multiplier)",
        ),
        ("noise_multiplier=optim.noise_multiplier", "noise_multiplier=seen[0]"),
    )


@fault("opacus noise scheduler", step=2, suites=("privacy",))
def sigma_does_not_decay():
    """The schedule of σ has no effect."""
    edit(
        "opacus.schedulers.noise_scheduler:StepNoise.get_noise_multiplier",
        ("self.gamma * self.optimizer.noise_multiplier", "self.optimizer.noise_multiplier"),
    )
