"""What a layer contributes for one parameter: per-sample gradients, written down or only implied.

A backward leaves one contribution per parameter. Its norms give the clip factors c, and once those are known it gives
the clipped gradient Σ_i c_i g_i, without a second backward ("book-keeping": Bu et al., "Differentially Private
Optimization on Large Foundation Models at Small Cost", 2023).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from flash_clipping.backend import Backend
from flash_clipping.types import Pair, TokenSum


class Contribution(ABC):
    """The gradients g_i of one parameter by the losses of B samples."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """B."""

    @abstractmethod
    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """‖g_i‖² of each sample, (B,), float32 or float64."""

    @abstractmethod
    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        """Σ_i c_i g_i of the parameter's full shape, for factors (B,)."""

    @abstractmethod
    def __add__(self, other: "Contribution") -> "Contribution":
        """The gradients of two calls of a layer, added up; NotImplemented if `other` is of another kind."""


@dataclass
class PerSample(Contribution):
    """Per-sample gradients (B, *shape), where they are small or where a layer gives nothing else."""

    gradients: torch.Tensor

    @property
    def samples(self) -> int:
        return len(self.gradients)

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        flat = self.gradients.flatten(1)
        return torch.linalg.vector_norm(flat if flat.dtype == torch.float64 else flat.float(), dim=1).square()

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        flat = self.gradients.flatten(1)
        return backend.weighted_sum(flat, factors[: len(flat)]).view(self.gradients.shape[1:])

    def __add__(self, other: Contribution) -> "PerSample":
        """One call may hold fewer samples: packed sequences shrink as they go."""
        if not isinstance(other, PerSample):
            return NotImplemented
        longer, shorter = sorted((self.gradients, other.gradients), key=len, reverse=True)
        total = longer.clone()
        total[: len(shorter)] += shorter
        return PerSample(total)


@dataclass
class DeferredSum(Contribution):
    """Per-sample gradients (B, *shape) that are not computed yet: after the backward, together with those of others."""

    term: TokenSum
    shape: torch.Size

    @property
    def samples(self) -> int:
        return len(self.term.backprops)

    def computed(self, backend: Backend) -> PerSample:
        return PerSample(backend.token_sums([self.term]).view(-1, *self.shape))

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return self.computed(backend).squared_norms(backend)

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        return self.computed(backend).clipped(factors, backend)

    def __add__(self, other: Contribution) -> Contribution:
        return NotImplemented


@dataclass
class Materialized(PerSample):
    """Per-sample gradients of a Linear's weight, (B, d_out, d_in), and their squared norms, (B,)."""

    squares: torch.Tensor

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return self.squares


@dataclass
class Factors(Contribution):
    """g_i = G_iᵀA_i of a Linear's weight: activations (B, T, d_in), backprops (B, T, d_out), of one dtype."""

    activations: torch.Tensor
    backprops: torch.Tensor

    @property
    def samples(self) -> int:
        return len(self.backprops)

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return backend.linear_weight(self.activations, self.backprops)

    @property
    def pair(self) -> Pair:
        return Pair(self.activations, self.backprops)

    @property
    def narrow(self) -> torch.Tensor:
        """The one of both that is scaled by the clip factors; the input, which layers may share, if they are alike."""
        return self.activations if self.activations.shape[-1] <= self.backprops.shape[-1] else self.backprops

    def written(self, backend: Backend) -> Materialized:
        """The per-sample gradients of the pair."""
        return Materialized(*backend.linear_gradients(self.activations, self.backprops))

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        a, g = self.pair
        if self.narrow is a:
            return backend.linear_product(backend.scaled(a, factors), g)
        return backend.linear_product(a, backend.scaled(g, factors))

    def __add__(self, other: Contribution) -> "Factors":
        """G₁ᵀA₁ + G₂ᵀA₂ is the product of the tokens of both calls."""
        if not isinstance(other, Factors):
            return NotImplemented
        return Factors(
            torch.cat([self.activations, other.activations], 1), torch.cat([self.backprops, other.backprops], 1)
        )


@dataclass
class EmbeddingGrad(Contribution):
    """g_i of an Embedding's weight: backprops (B, T, d) added up in the rows that ids (B, T) name."""

    ids: torch.Tensor
    backprops: torch.Tensor
    num_embeddings: int
    padding_idx: int | None

    @property
    def samples(self) -> int:
        return len(self.backprops)

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return backend.embedding_weight(self.ids, self.backprops, self.padding_idx)

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        padding = -1 if self.padding_idx is None else self.padding_idx
        g = backend.scaled(self.backprops, factors)
        return torch.ops.aten.embedding_dense_backward(g, self.ids, self.num_embeddings, padding, False)

    def __add__(self, other: Contribution) -> "EmbeddingGrad":
        if not isinstance(other, EmbeddingGrad):
            return NotImplemented
        both = torch.cat([self.ids, other.ids], 1), torch.cat([self.backprops, other.backprops], 1)
        return EmbeddingGrad(*both, self.num_embeddings, self.padding_idx)
