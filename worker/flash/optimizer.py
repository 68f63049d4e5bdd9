"""The optimizer of `flash_fsdp`: global sums as DTensors, and the same noise at every world size."""

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.optimizers.optimizer import _check_processed_flag, _generate_noise, _mark_as_processed
from torch.distributed.tensor import DTensor, distribute_tensor


class FSDPOptimizerFlash(DPOptimizerFastGradientClipping):
    """Sums clipped gradients over ranks and virtual steps, adds the noise once, and divides as Opacus does.

    `summed_grad` of a parameter is Σ over all samples of all ranks, a DTensor placed like the parameter. The update
    is (Σ + noise) / (expected batch of all ranks) for "mean" and Σ + noise for "sum". `expected_batch_size` is that
    of one rank, as in Opacus' distributed optimizers.
    """

    @torch.no_grad()
    def accumulate(self) -> None:
        """Adds the gradients of the last backward to `summed_grad`."""
        for p in self.params:
            # FSDP2's reduce-scatter averages over the ranks of the mesh.
            gradient = p.grad.detach() * p.grad.device_mesh.size()
            p.summed_grad = gradient if p.summed_grad is None else p.summed_grad + gradient

    @torch.no_grad()
    def add_noise(self) -> None:
        """Sets `grad` to `summed_grad` plus this rank's slice of noise that is drawn for the whole parameter.

        Every rank draws in parameter order and full shape, so a generator with one seed gives the noise that one
        process would draw, at every world size.
        """
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            noise = _generate_noise(
                std=self.noise_multiplier * self.max_grad_norm,
                reference=p.summed_grad,
                generator=self.generator,
                secure_mode=self.secure_mode,
            )
            p.grad = p.summed_grad + _local_slice(noise, p.summed_grad)
            _mark_as_processed(p.summed_grad)

    def scale_grad(self) -> None:
        """Divides by the expected batch of all ranks for "mean"; does nothing for "sum"."""
        super().scale_grad()
        if self.loss_reduction == "mean":
            for p in self.params:
                p.grad /= p.grad.device_mesh.size()


def _local_slice(noise: torch.Tensor, like: DTensor) -> DTensor:
    return distribute_tensor(noise.to(like.dtype), like.device_mesh, like.placements, src_data_rank=None)
