"""The synthetic data set and how a global batch is divided among ranks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.contract import Head, Workload
from worker.training.model import PerSampleCrossEntropy


@dataclass(frozen=True)
class Batch:
    """Tokens (B, T) int64, targets (B) or (B, T) int64, and the key padding mask (B, T) or None."""

    tokens: Tensor
    targets: Tensor
    key_padding_mask: Tensor | None

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int, device: torch.device | None = None) -> "Batch":
        """Samples `start` to `stop`, on `device`."""
        mask = self.key_padding_mask
        return Batch(
            self.tokens[start:stop].to(device),
            self.targets[start:stop].to(device),
            None if mask is None else mask[start:stop].to(device),
        )

    def slice_of(self, rank: int, world_size: int, device: torch.device) -> "Batch":
        """The samples `rank` computes, on `device`.

        A rank with none gets one sample whose targets are all ignored: its loss and gradient are exactly zero.
        Opacus' samplers reshape with -1 and raise on tensors without samples, and every rank must take part in
        the collectives of a step.
        """
        start, stop = rank_slice(len(self), rank, world_size)
        if start < stop:
            return self.part(start, stop, device)
        idle = self.part(0, 1, device)
        return replace(idle, targets=torch.full_like(idle.targets, PerSampleCrossEntropy.IGNORED))


class SyntheticTokens(Dataset):
    """Random tokens and targets that depend on the workload's seed and sizes alone, in a fixed order."""

    def __init__(self, workload: Workload):
        model, generator = workload.model, torch.Generator().manual_seed(workload.seed)
        N, T = workload.num_samples, workload.seq_len
        self.tokens = torch.randint(model.vocab_size, (N, T), generator=generator)
        labels = torch.randint(model.num_classes, (N,), generator=generator)
        self.key_padding_mask = _padding_mask(N, T, workload.padding, generator)
        self.targets = labels if model.head is Head.CLASSIFICATION else self._next_tokens()

    def _next_tokens(self) -> Tensor:
        targets = torch.full_like(self.tokens, PerSampleCrossEntropy.IGNORED)
        targets[:, :-1] = self.tokens[:, 1:]
        if self.key_padding_mask is not None:
            targets[:, :-1][self.key_padding_mask[:, 1:]] = PerSampleCrossEntropy.IGNORED
        return targets

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: list[int]) -> Batch:
        mask = None if self.key_padding_mask is None else self.key_padding_mask[indices]
        return Batch(self.tokens[indices], self.targets[indices], mask)


def _padding_mask(N: int, T: int, padding: float, generator: torch.Generator) -> Tensor | None:
    """True at padded positions: every sample keeps its first token and at least (1 - padding) of T."""
    if padding == 0:
        return None
    shortest = max(1, T - int(padding * T))
    lengths = torch.randint(shortest, T + 1, (N,), generator=generator)
    return torch.arange(T)[None, :] >= lengths[:, None]


def global_loader(workload: Workload) -> DataLoader:
    """Global batches in data set order; the last one may be smaller."""
    data = SyntheticTokens(workload)
    return DataLoader(data, batch_size=workload.batch_size, shuffle=False, collate_fn=data.batch)


def rank_slice(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and past-the-last sample of a global batch that `rank` computes.

    Slices are contiguous in rank order, differ by at most one sample, and are empty for some ranks when the
    batch is smaller than the world.
    """
    return batch_size * rank // world_size, batch_size * (rank + 1) // world_size
