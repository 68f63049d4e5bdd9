"""Faults of per-sample gradient norms, by layer type, and of the precision they are kept in."""

from worker.selftest import edit, fault

FAST = "opacus.grad_sample.grad_sample_module_fast_gradient_clipping:GradSampleHooksFastGradientClipping"
LINEAR = "opacus.grad_sample.linear:compute_linear_norm_sample"


@fault("opacus norm sampler of Linear (ghost)", parameters=("*.weight",))
def norm_of_linear_weight_by_token():
    """The norm of a Linear's weight adds up tokens' squares and forgets their products."""
    edit(LINEAR, ('ga = torch.einsum("n...i,n...i->n", ggT, aaT)', 'ga = torch.einsum("nii,nii->n", ggT, aaT)'))


@fault("opacus norm sampler of Linear (ghost)", parameters=("*.bias",))
def norm_of_linear_bias_by_token():
    """The norm of a Linear's bias adds up tokens' squares and forgets their products."""
    edit(LINEAR, ('torch.einsum("n...i->n", ggT)', 'torch.einsum("nii->n", ggT)'))


@fault("opacus norm sampler of Embedding (ghost)", parameters=("token_embedding.weight",))
def norm_of_embedding_without_repeats():
    """A token that a sample holds twice counts as two rows of the embedding."""
    edit(
        "opacus.grad_sample.embedding_norm_sample:compute_embedding_norm_sample",
        ("0, new_index_positions.to(device), grad_values", "0, new_index_positions.to(device), grad_values**2"),
        ("torch.sum(summed_gradients**2, dim=1)", "torch.sum(summed_gradients, dim=1)"),
    )


@fault("clipwatch flash sampler of Linear", parameters=("*proj.weight", "*mlp_*.weight"))
def flash_norm_of_linear_by_token():
    """Flash Clipping's norm of a Linear's weight takes every token for a sample and adds up their squares."""
    right = "self.functions.linear_weight(activations, backprops, input_precision=self.input_precision)"
    by_token = "(activations.square().sum(2) * backprops.square().sum(2)).sum(1)"
    edit("flash_clipping.backend:Backend.linear_weight", (right, by_token))
    together = "self.functions.linear_weights(pairs, input_precision=self.input_precision)"
    by_token = "sum((a.square().sum(2) * g.square().sum(2)).sum(1) for a, g in pairs)"
    edit("flash_clipping.backend:Backend.linear_weights", (together, by_token))


@fault("clipwatch flash sampler of LayerNorm", parameters=("*norm.weight",))
def flash_norm_of_layer_norm_not_normalised():
    """Flash Clipping's gradient of a LayerNorm's weight uses the layer's input as it came, not normalised."""
    edit(
        "flash_clipping.samplers:layer_norm",
        ("backend.layer_norm_gradients(x, g, layer.eps)", "((g * x).sum(1), g.sum(1))"),
        ("TokenSum(g, x, layer.eps)", "TokenSum(g * x)"),
    )


@fault("clipwatch flash sampler of Embedding", parameters=("*embedding.weight",))
def flash_norm_of_embedding_squared():
    """Flash Clipping's norm of an Embedding counts where its square should."""
    edit("flash_clipping.contributions:EmbeddingGrad.squared_norms", ("self.padding_idx)", "self.padding_idx).sqrt()"))


@fault("opacus norm of all parameters (ghost)", parameters=("head.bias",))
def parameter_left_out_of_norm():
    """The norm of a sample leaves the last parameter out."""
    edit(
        f"{FAST}.get_norm_sample",
        ("for param in self.trainable_parameters", "for param in self.trainable_parameters[:-1]"),
    )


@fault("opacus norm of all parameters (ghost_fsdp)")
def parameter_left_out_of_norm_sharded():
    """The norm of a sample leaves out all but the first parameter of each sharded layer."""
    edit(
        "opacus.grad_sample.grad_sample_module_fast_gradient_clipping_fsdp:"
        "GradSampleHooksFastGradientClippingFSDP.get_norm_sample",
        ("for per_param_norm in module.norm_sample", "for per_param_norm in module.norm_sample[:1]"),
    )


@fault("opacus norm of all parameters (ghost)")
def norms_in_bfloat16():
    """Norms of parameters are added up in bfloat16."""
    edit(f"{FAST}.get_norm_sample", (".norm(2, dim=0)", ".bfloat16().norm(2, dim=0).float()"))


@fault("opacus DPOptimizer (hooks, functorch)")
def factors_in_float16():
    """Clip factors are kept in float16."""
    edit("opacus.optimizers.optimizer:DPOptimizer.clip_and_accumulate", (").clamp(max=1.0)", ").clamp(max=1.0).half()"))


@fault("opacus fast gradient clipping (ghost)", suites=("clipping",))
def frozen_parameters_in_norm():
    """A frozen weight beside a trained bias counts in the norm of a sample."""
    edit(LINEAR, ("if layer.weight.requires_grad:\n\n", "if True:\n\n"))
    recorded = "param._norm_sample = ns\n            if param.requires_grad:"
    edit(f"{FAST}.capture_backprops_hook", ("if param.requires_grad:", recorded))
    edit(
        f"{FAST}.get_norm_sample",
        ("in self.trainable_parameters", 'in self._module.parameters() if hasattr(param, "_norm_sample")'),
    )
