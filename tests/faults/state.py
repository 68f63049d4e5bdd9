"""Faults of what outlives a step: accumulated gradients, the optimizer's state, the schedules."""

from worker.selftest import edit, fault

FAST = "opacus.optimizers.optimizer_fast_gradient_clipping:DPOptimizerFastGradientClipping"


@fault("opacus optimizer (ghost_fsdp)", step=2)
def summed_gradient_not_cleared():
    """The clipped sum of a step stays and is added to the next."""
    edit(
        "opacus.optimizers.fsdpoptimizer_fast_gradient_clipping:FSDPOptimizerFastGradientClipping.zero_grad",
        ("if not self._is_last_step_skipped:", "if False:"),
    )


@fault("opacus optimizer (ghost, flash)", suites=("clipping",))
def virtual_step_dropped():
    """Of several backward passes only the last one counts."""
    edit(
        f"{FAST}.accumulate",
        ("p.summed_grad.add_(p.grad.data)", "p.summed_grad = p.grad.data.clone()"),
    )


@fault("opacus DPOptimizer (hooks, functorch)", suites=("clipping",))
def virtual_step_dropped_materialised():
    """Of several backward passes only the last one counts, in hooks."""
    edit(
        "opacus.optimizers.optimizer:DPOptimizer.clip_and_accumulate",
        ("p.summed_grad += grad", "p.summed_grad = grad"),
    )


@fault("opacus DPOptimizer", step=4, suites=("privacy",))
def optimizer_state_lost():
    """Loading a checkpoint does not restore the optimizer's state."""
    edit(
        "opacus.optimizers.optimizer:DPOptimizer.load_state_dict",
        ("self.original_optimizer.load_state_dict(state_dict)", "pass"),
    )


@fault("opacus DPOptimizer")
def optimizer_steps_twice():
    """The wrapped optimizer takes two steps with one gradient."""
    edit(
        "opacus.optimizers.optimizer:DPOptimizer.step",
        (
            "return self.original_optimizer.step()",
            "self.original_optimizer.step()\n        return self.original_optimizer.step()",
        ),
    )


@fault("clipwatch training", step=2, suites=("privacy",))
def learning_rate_constant():
    """The schedule of the learning rate is never stepped."""
    edit("worker.training.private:OpacusTrainer.step", ("self.schedule.step()", "pass"))


@fault("clipwatch training", step=4, suites=("privacy",))
def noise_restarts_at_resume():
    """Resuming does not restore the noise generator, so that noise is used twice."""
    edit(
        "worker.training.private:OpacusTrainer.load", ('self.optimizer.generator.set_state(saved["generator"])', "pass")
    )


@fault("opacus DPOptimizer", suites=("privacy",))
def weight_decay_without_learning_rate():
    """The weight decay of the wrapped optimizer is not multiplied by the learning rate."""
    edit(
        "opacus.optimizers.optimizer:DPOptimizer.__init__",
        (
            "self.original_optimizer = optimizer",
            "self.original_optimizer = optimizer\n"
            "    for group in optimizer.param_groups:\n"
            "        group['weight_decay'] /= group['lr']",
        ),
    )


@fault("opacus AdaClipDPOptimizer", step=2, suites=("clipping",))
def bound_moves_the_wrong_way():
    """Adaptive clipping raises C where it should lower it."""
    edit(
        "opacus.optimizers.adaclipoptimizer:AdaClipDPOptimizer.update_max_grad_norm",
        ("-self.clipbound_learning_rate", "self.clipbound_learning_rate"),
    )
