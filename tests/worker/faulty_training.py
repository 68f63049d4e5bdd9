"""`worker.training` with one fault applied at run time: `faulty_training.py FAULT --spec FILE --out FOLDER`.

The faults are what a wrong commit could do; the gates must see each of them.
"""

import os
import signal
import sys
import time

import torch

from service.contract import Workload
from worker.training.model import PerSampleCrossEntropy

STEP_OF_NAN = 2


def wrong_clip_factor():
    from flash_clipping import GradSampleModuleFlash

    right = GradSampleModuleFlash.get_clipping_coef
    GradSampleModuleFlash.get_clipping_coef = lambda self: right(self) * 0.9


def average_over_ranks():
    from flash_clipping import FSDPOptimizerFlash

    right = FSDPOptimizerFlash.accumulate

    def accumulate(self):
        right(self)
        for p in self.params:
            p.summed_grad = p.summed_grad / torch.distributed.get_world_size()

    FSDPOptimizerFlash.accumulate = accumulate


def other_noise():
    from flash_clipping import FSDPOptimizerFlash

    right = FSDPOptimizerFlash.__init__

    def __init__(self, *args, generator, **kwargs):
        right(self, *args, generator=generator.manual_seed(7), **kwargs)

    FSDPOptimizerFlash.__init__ = __init__


def noise_on_every_rank():
    from opacus.optimizers import DPOptimizerFastGradientClipping as SingleNode
    from opacus.optimizers.ddpoptimizer_fast_gradient_clipping import DistributedDPOptimizerFastGradientClipping

    DistributedDPOptimizerFastGradientClipping.add_noise = SingleNode.add_noise


def one_step_less():
    right = Workload.num_steps.fget
    Workload.num_steps = property(lambda self: right(self) - 1)


def nan_loss():
    right, calls = PerSampleCrossEntropy.forward, []

    def forward(self, logits, targets):
        calls.append(1)
        losses = right(self, logits * float("nan") if len(calls) == STEP_OF_NAN else logits, targets)
        return losses

    PerSampleCrossEntropy.forward = forward


def out_of_memory():
    def forward(self, logits, targets):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    PerSampleCrossEntropy.forward = forward


def killed():
    def forward(self, logits, targets):
        os.kill(os.getpid(), signal.SIGKILL)

    PerSampleCrossEntropy.forward = forward


def raises_on_the_last_rank():
    right, calls = PerSampleCrossEntropy.forward, []

    def forward(self, logits, targets):
        calls.append(1)
        if len(calls) == STEP_OF_NAN and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            raise ArithmeticError("a fault\nof two lines")
        return right(self, logits, targets)

    PerSampleCrossEntropy.forward = forward


def stops_for_ever():
    right, calls = PerSampleCrossEntropy.forward, []

    def forward(self, logits, targets):
        calls.append(1)
        while len(calls) == STEP_OF_NAN:
            time.sleep(60)
        return right(self, logits, targets)

    PerSampleCrossEntropy.forward = forward


def no_ghost_fsdp():
    import opacus.grad_sample

    right = opacus.grad_sample.get_gsm_class

    def get_gsm_class(mode):
        if mode == "ghost_fsdp":
            raise ValueError(f"Unexpected grad_sample_mode: {mode}")
        return right(mode)

    opacus.grad_sample.get_gsm_class = get_gsm_class


def opacus_does_not_import():
    sys.modules["opacus"] = None


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
    from worker.training.__main__ import main

    sys.exit(main())
