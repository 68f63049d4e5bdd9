"""Faults of one layer's gradient."""

from worker.selftest import edit, fault


def _mark_layer_norms():
    """Lets optimizers tell the parameters of a LayerNorm, sharded or not, by an attribute."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks
    from torch import nn

    right = GradSampleHooks.__init__

    def __init__(self, m, *args, **kwargs):
        for module in m.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.untrained = module.bias.untrained = True
        right(self, m, *args, **kwargs)

    GradSampleHooks.__init__ = __init__


@fault("clipwatch optimizers (flash, flash_fsdp)", parameters=("*norm.weight", "*norm.bias"))
def layer_norm_untrained():
    """Every LayerNorm gets a gradient of zero in flash and flash_fsdp, its norms being right."""
    _mark_layer_norms()
    edit(
        "flash_clipping.optimizer:DPOptimizerFlash.accumulate",
        ("p.grad, None", 'p.grad * (0 if hasattr(p, "untrained") else 1), None'),
    )


@fault("opacus optimizer (ghost)", parameters=("*norm.weight", "*norm.bias"))
def layer_norm_untrained_fast():
    """Every LayerNorm gets a gradient of zero in ghost, its norms being right."""
    _mark_layer_norms()
    edit(
        "opacus.optimizers.optimizer_fast_gradient_clipping:DPOptimizerFastGradientClipping.accumulate",
        (
            "        if p.summed_grad is not None:",
            '        if hasattr(p, "untrained"):\n            p.grad.zero_()\n        if p.summed_grad is not None:',
        ),
    )


@fault("opacus grad sampler of Linear (hooks)", parameters=("*.bias",))
def linear_bias_averaged_over_tokens():
    """The gradient of a Linear's bias is the mean over tokens in place of the sum."""
    edit(
        "opacus.grad_sample.linear:compute_linear_grad_sample",
        (
            'torch.einsum("n...k->nk", backprops)',
            "backprops.flatten(1, -2).mean(1) if backprops.dim() > 2 else backprops",
        ),
    )


@fault("opacus grad sampler of LayerNorm (hooks, ghost)", parameters=("*norm.weight",))
def layer_norm_not_normalised():
    """The gradient of a LayerNorm's weight uses the layer's input as it came, not normalised."""
    edit(
        "opacus.grad_sample.layer_norm:compute_layer_norm_grad_sample",
        ("F.layer_norm(activations, layer.normalized_shape, eps=layer.eps)", "activations"),
    )


@fault("opacus grad sampler of Embedding (hooks)", parameters=("*_embedding.weight",))
def embedding_without_repeats():
    """A token that a sample holds twice gets the gradient of one of its places."""
    edit("opacus.grad_sample.embedding:compute_embedding_grad_sample", ("scatter_add_(", "scatter_("))


@fault("opacus grad sampler of Conv2d (hooks, ghost)", parameters=("*.bias",), suites=("clipping",))
def convolution_bias_averaged():
    """The gradient of a convolution's bias is the mean over the image in place of the sum."""
    edit(
        "opacus.grad_sample.conv:compute_conv_grad_sample",
        ("torch.sum(backprops, dim=2)", "torch.mean(backprops, dim=2)"),
    )


@fault("opacus grad sampler of GroupNorm (hooks, ghost)", parameters=("*norm*.weight",), suites=("clipping",))
def group_norm_with_one_group():
    """The gradient of a GroupNorm's weight is computed as if there were one group."""
    edit(
        "opacus.grad_sample.group_norm:compute_group_norm_grad_sample",
        ("layer.num_groups, eps", "1, eps"),
    )


@fault("opacus grad sampler of RNNLinear (hooks, ghost)", parameters=("*lstm.*",), suites=("clipping",))
def recurrent_layer_of_one_step():
    """A recurrent layer's gradient is that of one time step in place of the sum over all."""
    edit(
        "opacus.grad_sample.grad_sample_module:create_or_accumulate_grad_sample",
        ("[: grad_sample.shape[0]] += grad_sample", "[: grad_sample.shape[0]] = grad_sample"),
    )
