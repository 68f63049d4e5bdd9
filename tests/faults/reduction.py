"""Faults of the reduction over ranks and of the divisor."""

from worker.selftest import edit, fault

DDP = (
    "opacus.optimizers.ddpoptimizer:DistributedDPOptimizer.reduce_gradients",
    "opacus.optimizers.ddpoptimizer_fast_gradient_clipping:DistributedDPOptimizerFastGradientClipping.reduce_gradients",
)
REDUCE = "torch.distributed.all_reduce(p.grad, op=torch.distributed.ReduceOp.SUM)"


@fault("clipwatch optimizer (flash_fsdp)")
def averaged_over_ranks():
    """flash_fsdp averages over ranks in place of summing."""
    edit(
        "flash_clipping.module:GradSampleModuleFlashFSDP._write",
        ("add(parameter, gradient)", "add(parameter, gradient / parameter.device_mesh.size())"),
    )


@fault("opacus optimizers (modes × several ranks)", suites=("clipping",))
def averaged_over_ranks_with_sum():
    """The gradient is divided by the number of ranks also where the loss is a sum."""
    for target in DDP:
        edit(target, ('if self.loss_reduction == "mean":', "if True:"))


@fault("opacus optimizers (modes × several ranks)")
def missing_all_reduce():
    """Each rank updates with its own gradient."""
    for target in DDP:
        edit(target, (REDUCE, "pass"))


@fault("opacus optimizers (modes × several ranks)")
def only_rank_0_counts():
    """Every rank gets the gradient of rank 0 in place of the sum."""
    for target in DDP:
        edit(target, (REDUCE, "torch.distributed.broadcast(p.grad, 0)"))


@fault("opacus optimizers (modes × several ranks)")
def divided_by_ranks_twice():
    """The mean over ranks is taken once too often."""
    for target in DDP:
        edit(target, ("p.grad /= self.world_size", "p.grad /= self.world_size**2"))


@fault("opacus PrivacyEngine")
def expected_batch_off_by_one():
    """The gradient is divided by one sample more than the expected batch."""
    edit(
        "opacus.privacy_engine:PrivacyEngine.make_private",
        ("int(len(data_loader.dataset) * sample_rate)", "int(len(data_loader.dataset) * sample_rate) + 1"),
    )


@fault("opacus PrivacyEngine (modes × several ranks)")
def expected_batch_of_all_ranks():
    """The expected batch is not divided by the number of ranks."""
    edit("opacus.privacy_engine:PrivacyEngine.make_private", ("expected_batch_size /= world_size", "pass"))


@fault("opacus DPOptimizer (hooks, functorch)")
def divided_by_actual_batch():
    """The gradient is divided by the batch there is in place of the expected one."""
    edit(
        "opacus.optimizers.optimizer:DPOptimizer.scale_grad",
        ("self.expected_batch_size * self.accumulated_iterations", "max(1, len(self.grad_samples[0]))"),
    )


@fault("clipwatch optimizer (flash_fsdp)")
def not_divided_by_ranks():
    """flash_fsdp divides by the expected batch of one rank in place of all."""
    edit(
        "flash_clipping.optimizer:FSDPOptimizerFlash._divisor",
        ("super()._divisor() * torch.distributed.get_world_size()", "super()._divisor()"),
    )
