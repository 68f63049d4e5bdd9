"""Faults of the clip factor."""

from worker.selftest import edit, fault

HOOKS = "opacus.optimizers.optimizer:DPOptimizer.clip_and_accumulate"
FAST = "opacus.grad_sample.grad_sample_module_fast_gradient_clipping:GradSampleHooksFastGradientClipping"
FAST_LOSS = "opacus.utils.fast_gradient_clipping_utils:DPTensorFastGradientClipping.backward"


@fault("opacus DPOptimizer (hooks, functorch)")
def clip_factor_scaled():
    """Every clip factor is 0.9 of what it should be."""
    edit(HOOKS, (").clamp(max=1.0)", ").clamp(max=1.0) * 0.9"))


@fault("opacus fast gradient clipping (ghost, flash)")
def clip_factor_scaled_fast():
    """Every clip factor of the fast modes is 0.9 of what it should be."""
    edit(f"{FAST}.get_clipping_coef", (".clamp(max=1.0)", ".clamp(max=1.0) * 0.9"))


@fault("opacus fast gradient clipping (ghost, flash)", suites=("clipping",))
def clip_factor_without_minimum():
    """Small gradients are scaled up to C: the factor is C / norm and not min(1, C / norm)."""
    edit(f"{FAST}.get_clipping_coef", (".clamp(max=1.0)", ""))


@fault("opacus DPOptimizer (hooks, functorch)")
def clip_factor_with_large_epsilon():
    """The small number that keeps the factor finite is 1e-2 in place of 1e-6."""
    edit(HOOKS, ("per_sample_norms + 1e-6", "per_sample_norms + 1e-2"))


@fault("opacus DPOptimizer (hooks, functorch)")
def clipped_layer_by_layer():
    """Each parameter is clipped by its own norm in place of the norm of the whole gradient."""
    per_layer = "(self.max_grad_norm / (grad_sample.flatten(1).norm(dim=1) + 1e-6)).clamp(max=1.0)"
    edit(HOOKS, ('einsum("i,i...", clip_factor_on_device,', f'einsum("i,i...", {per_layer},'))


@fault("opacus fast gradient clipping (ghost)")
def clipped_sum_averaged():
    """The second backward of ghost clipping averages over samples in place of summing."""
    edit(FAST_LOSS, ("second_loss = torch.sum(", "second_loss = torch.mean("))


@fault("opacus fast gradient clipping (ghost, flash)")
def clip_factors_of_other_samples():
    """The factors are in the reverse order of the samples: each sample gets another one's."""
    edit(f"{FAST}.get_clipping_coef", (".clamp(max=1.0)", ".clamp(max=1.0).flip(0)"))


@fault("opacus fast gradient clipping (ghost, flash)", suites=("clipping",))
def clipped_to_one():
    """C is taken for 1 where factors are computed."""
    edit(f"{FAST}.get_clipping_coef", ("self.max_grad_norm /", "1.0 /"))
