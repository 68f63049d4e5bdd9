"""The synthetic data set, how global batches are drawn from it, and how a batch is divided among ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from service.contract import IMAGE_CHANNELS, Family, Head, Sampling, Workload
from service.contract.slices import deal
from worker.training.model import PerSampleCrossEntropy


@dataclass(frozen=True)
class Batch:
    """Inputs, targets (B) or (B, T) int64, and the key padding mask (B, T) or None.

    Inputs are tokens (B, T) int64, or images (B, 3, S, S) float32 for a convnet. `len` is the number of samples that
    count: 0 for an `idle` batch, which holds one sample without weight.
    """

    inputs: Tensor
    targets: Tensor
    key_padding_mask: Tensor | None
    idle: bool = False

    def __len__(self) -> int:
        return 0 if self.idle else len(self.inputs)

    def part(self, samples: range, device: torch.device | None = None) -> "Batch":
        """The samples of a range, on `device`."""
        start, stop, mask = samples.start, samples.stop, self.key_padding_mask
        return Batch(
            self.inputs[start:stop].to(device),
            self.targets[start:stop].to(device),
            None if mask is None else mask[start:stop].to(device),
        )

    def or_idle(self) -> "Batch":
        """This batch, or, if it is empty, one sample whose targets are all ignored: its loss and gradient are zero.

        Opacus' samplers reshape with -1 and raise on tensors without samples, and every rank must take part in
        the collectives of a step.
        """
        if len(self.inputs) > 0:
            return self
        mask = self.key_padding_mask
        return Batch(
            self.inputs.new_zeros(1, *self.inputs.shape[1:]),
            self.targets.new_full((1, *self.targets.shape[1:]), PerSampleCrossEntropy.IGNORED),
            None if mask is None else mask.new_zeros(1, *mask.shape[1:]),
            idle=True,
        )


class SyntheticData(Dataset[int]):
    """Random inputs and targets that depend on the workload's seed and sizes alone, in a fixed order."""

    def __init__(self, workload: Workload):
        model, generator = workload.model, torch.Generator().manual_seed(workload.seed)
        N, T = workload.num_samples, workload.seq_len
        if model.family is Family.CONVNET:
            shape = (N, IMAGE_CHANNELS, model.image_size, model.image_size)
            self.inputs = torch.randn(shape, generator=generator)
        else:
            self.inputs = torch.randint(model.vocab_size, (N, T), generator=generator)
        labels = torch.randint(model.num_classes, (N,), generator=generator)
        self.key_padding_mask = _padding_mask(N, T, workload.padding, generator)
        self.targets = labels if model.head is Head.CLASSIFICATION else self._next_tokens()
        if workload.ignored:
            ignored = torch.rand(self.targets.shape, generator=generator) < workload.ignored
            self.targets[ignored] = PerSampleCrossEntropy.IGNORED

    def _next_tokens(self) -> Tensor:
        targets = torch.full_like(self.inputs, PerSampleCrossEntropy.IGNORED)
        targets[:, :-1] = self.inputs[:, 1:]
        if self.key_padding_mask is not None:
            targets[:, :-1][self.key_padding_mask[:, 1:]] = PerSampleCrossEntropy.IGNORED
        return targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: list[int]) -> Batch:
        mask = None if self.key_padding_mask is None else self.key_padding_mask[indices]
        return Batch(self.inputs[indices], self.targets[indices], mask)


def _padding_mask(N: int, T: int, padding: float, generator: torch.Generator) -> Tensor | None:
    """True at padded positions: every sample keeps its first token and at least (1 - padding) of T."""
    if padding == 0:
        return None
    shortest = max(1, T - int(padding * T))
    lengths = torch.randint(shortest, T + 1, (N,), generator=generator)
    return torch.arange(T)[None, :] >= lengths[:, None]


class PoissonBatches(Sampler[list[int]]):
    """Global batches of an epoch: each sample is drawn into each batch independently; some batches may be empty.

    Opacus' own sampler gives every rank batches of its own, but here the global batch must be the same at every world
    size.
    """

    def __init__(self, workload: Workload):
        self.workload = workload
        self.generator = torch.Generator().manual_seed(workload.seed)

    def __len__(self) -> int:
        return self.workload.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            drawn = torch.rand(self.workload.num_samples, generator=self.generator) < self.workload.sample_rate
            yield drawn.nonzero().flatten().tolist()


def global_loader(workload: Workload) -> DataLoader[int]:
    """Global batches as the workload samples them; iterating again draws the next epoch."""
    data = SyntheticData(workload)
    if workload.sampling is Sampling.POISSON:
        return DataLoader(data, batch_sampler=PoissonBatches(workload), collate_fn=data.batch)
    return DataLoader(data, batch_size=workload.batch_size, shuffle=False, collate_fn=data.batch)


def parts_of(workload: Workload, batch: Batch, rank: int, world_size: int, device: torch.device) -> list[Batch]:
    """The samples of a global batch that `rank` computes, one part for each virtual step, on `device`."""
    shares = [part[rank] for part in deal(workload, len(batch), world_size)]
    parts = [batch.part(share, device) for share in shares]
    return parts if workload.empty_tensors else [part.or_idle() for part in parts]
