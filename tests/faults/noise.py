"""Faults of the noise."""

from worker.selftest import edit, fault

HOOKS = "opacus.optimizers.optimizer:DPOptimizer.add_noise"
FAST = "opacus.optimizers.optimizer_fast_gradient_clipping:DPOptimizerFastGradientClipping.add_noise"
FLASH = "flash_clipping.optimizer:DPOptimizerFlash._add_opacus_noise"
OWN_PART = "flash_clipping.optimizer:FSDPOptimizerFlash._own_part"
OWN = "distribute_tensor(noise.to(like.dtype), like.device_mesh, like.placements, src_data_rank=None)"
GHOST_FSDP = "opacus.optimizers.fsdpoptimizer_fast_gradient_clipping:FSDPOptimizerFastGradientClipping.add_noise"
DRAW = "opacus.optimizers.optimizer:_generate_noise"
EVERY_MODE = "opacus (every mode)"


@fault("opacus DPOptimizer (hooks, functorch)")
def noise_added_twice():
    """The noise is added twice."""
    edit(HOOKS, ("p.summed_grad + noise", "p.summed_grad + noise + noise"))


@fault(EVERY_MODE)
def noise_missing():
    """No noise is added."""
    edit(DRAW, ("if std == 0:", "if True:"))


@fault(EVERY_MODE, parameters=("*.bias", "*norm.weight"))
def noise_missing_on_vectors():
    """Parameters of one dimension, biases and LayerNorms, get no noise."""
    edit(DRAW, ("if std == 0:", "if std == 0 or len(reference.shape) == 1:"))


@fault(EVERY_MODE)
def noise_too_small():
    """The noise has 0.9 of the standard deviation it should have."""
    edit(DRAW, ("if std == 0:", "std = 0.9 * std\n    if std == 0:"))


@fault(EVERY_MODE, suites=("clipping", "privacy"))
def noise_of_another_bound():
    """The noise has the standard deviation σ in place of σ·C."""
    for target in (HOOKS, FAST, FLASH):
        edit(target, (" * self.max_grad_norm", ""))


@fault(EVERY_MODE, suites=("clipping", "privacy"))
def noise_of_squared_deviation():
    """The variance is given where the standard deviation is asked for."""
    edit(DRAW, ("if std == 0:", "std = std**2\n    if std == 0:"))


@fault(EVERY_MODE, step=2)
def noise_repeated_every_step():
    """The generator is seeded anew at every step: all steps have the same noise."""
    for target in (HOOKS, FAST, FLASH):
        edit(target, ("    for p in self.params:", "    self.generator.manual_seed(42)\n    for p in self.params:"))


@fault(EVERY_MODE, parameters=("*",))
def noise_repeated_in_parameters():
    """Each parameter draws from the same state of the generator: equal shapes get equal noise."""
    restore = "        self.generator.set_state(state)\n        noise = _generate_noise("
    for target in (HOOKS, FAST, FLASH):
        edit(
            target,
            ("    for p in self.params:", "    state = self.generator.get_state()\n    for p in self.params:"),
            ("        noise = _generate_noise(", restore),
        )


@fault("clipwatch optimizer (flash_fsdp)")
def noise_on_shard_of_rank_0():
    """Only rank 0 adds noise to its shards."""
    edit(OWN_PART, (OWN, f"{OWN} * (torch.distributed.get_rank() == 0)"))


@fault("clipwatch optimizer (flash_fsdp)")
def noise_equal_on_ranks():
    """Each rank draws the noise of its shard from a generator with the same seed: shards get equal noise."""
    edit(FLASH, ("reference=p.summed_grad,", 'reference=getattr(p.summed_grad, "_local_tensor", p.summed_grad),'))
    part = "DTensor.from_local(noise, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())"
    edit(OWN_PART, (OWN, part))


@fault("opacus optimizers (modes × several ranks)")
def noise_on_every_rank():
    """Every rank adds the noise before gradients are summed, in place of rank 0 alone."""
    for module, name in (
        ("ddpoptimizer", "DistributedDPOptimizer"),
        ("ddpoptimizer_fast_gradient_clipping", "DistributedDPOptimizerFastGradientClipping"),
    ):
        edit(f"opacus.optimizers.{module}:{name}.add_noise", ("if self.rank == 0:", "if True:"))


@fault("opacus optimizer (ghost_fsdp)")
def noise_not_averaged():
    """ghost_fsdp adds the noise of a sum to a gradient that was averaged over ranks."""
    edit(GHOST_FSDP, ("noise.div_(self.world_size)", "pass"))


@fault("opacus DPOptimizer (hooks, functorch)", suites=("clipping", "privacy"))
def noise_scaled_by_bound_twice():
    """The noise has the standard deviation σ·C² in place of σ·C, as if it were scaled like a gradient."""
    edit(HOOKS, (" * self.max_grad_norm", " * self.max_grad_norm**2"))
