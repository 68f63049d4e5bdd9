"""What a layer contributes for one parameter: its per-sample gradients, or what they follow from.

A backward leaves one contribution for each parameter. The norms of all contributions give the clip factors c. Each
contribution then gives its clipped gradient Σ_i c_i g_i, without a second backward. Bu et al., "Differentially Private
Optimization on Large Foundation Models at Small Cost", 2023, call this book-keeping.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from flash_clipping.backend import Backend
from flash_clipping.types import Pair, TokenSum


class Contribution(ABC):
    """The gradients g_i of the losses of B samples with respect to one parameter."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """B, the number of samples."""

    @abstractmethod
    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """‖g_i‖² of each sample, (B,), float32 or float64."""

    @abstractmethod
    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        """Σ_i c_i g_i of the parameter's full shape, for factors (B,)."""

    @abstractmethod
    def __add__(self, other: "Contribution") -> "Contribution":
        """The sum of the gradients of two calls of a layer; NotImplemented if `other` is of another class."""


@dataclass
class PerSample(Contribution):
    """Written per-sample gradients, (B, *shape): of small parameters, and of layers that give nothing else."""

    gradients: torch.Tensor

    @property
    def samples(self) -> int:
        return len(self.gradients)

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        flat = self.gradients.flatten(1)
        norms: torch.Tensor = torch.linalg.vector_norm(flat if flat.dtype == torch.float64 else flat.float(), dim=1)
        return norms.square()

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        flat = self.gradients.flatten(1)
        return backend.weighted_sum(flat, factors[: len(flat)]).view(self.gradients.shape[1:])

    def __add__(self, other: Contribution) -> "PerSample":
        """One call may have fewer samples: the batch of a packed sequence shrinks from step to step."""
        if not isinstance(other, PerSample):
            return NotImplemented
        longer, shorter = sorted((self.gradients, other.gradients), key=len, reverse=True)
        total = longer.clone()
        total[: len(shorter)] += shorter
        return PerSample(total)


@dataclass
class DeferredSum(Contribution):
    """Per-sample gradients (B, *shape) that are computed after the backward, together with those of other layers."""

    term: TokenSum
    shape: torch.Size

    @property
    def samples(self) -> int:
        return len(self.term.backprops)

    def computed(self, backend: Backend) -> PerSample:
        """The per-sample gradients, computed now."""
        return PerSample(backend.token_sums([self.term]).view(-1, *self.shape))

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return self.computed(backend).squared_norms(backend)

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        return self.computed(backend).clipped(factors, backend)

    def __add__(self, other: Contribution) -> Contribution:
        return NotImplemented


@dataclass
class Materialized(PerSample):
    """Written per-sample gradients of a Linear's weight, (B, d_out, d_in), with their squared norms, (B,)."""

    squares: torch.Tensor

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return self.squares


@dataclass
class Factors(Contribution):
    """The factors of a Linear weight's gradients, g_i = G_iᵀA_i.

    Activations A (B, T, d_in) and backprops G (B, T, d_out) have one dtype.
    """

    activations: torch.Tensor
    backprops: torch.Tensor

    @property
    def samples(self) -> int:
        return len(self.backprops)

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return backend.linear_weight(self.activations, self.backprops)

    @property
    def pair(self) -> Pair:
        """The factors, as the backend takes them."""
        return Pair(self.activations, self.backprops)

    @property
    def narrow(self) -> torch.Tensor:
        """The factor with fewer features, which the clip factors scale. With equal features it is the activations,
        which layers may share."""
        return self.activations if self.activations.shape[-1] <= self.backprops.shape[-1] else self.backprops

    def written(self, backend: Backend) -> Materialized:
        """The per-sample gradients, written."""
        return Materialized(*backend.linear_gradients(self.activations, self.backprops))

    def clipped(self, factors: torch.Tensor, backend: Backend) -> torch.Tensor:
        a, g = self.pair
        if self.narrow is a:
            return backend.linear_product(backend.scaled(a, factors), g)
        return backend.linear_product(a, backend.scaled(g, factors))

    def __add__(self, other: Contribution) -> "Factors":
        """G₁ᵀA₁ + G₂ᵀA₂ is one product over the tokens of both calls."""
        if not isinstance(other, Factors):
            return NotImplemented
        return Factors(
            torch.cat([self.activations, other.activations], 1), torch.cat([self.backprops, other.backprops], 1)
        )


@dataclass
class EmbeddingGrad(Contribution):
    """The gradients of an Embedding's weight: row v of g_i is the sum of g_it over the tokens t whose id is v.

    `ids` has shape (B, T), `backprops` (B, T, d).
    """

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
        gradient: torch.Tensor = torch.ops.aten.embedding_dense_backward(
            g, self.ids, self.num_embeddings, padding, False
        )
        return gradient

    def __add__(self, other: Contribution) -> "EmbeddingGrad":
        if not isinstance(other, EmbeddingGrad):
            return NotImplemented
        both = torch.cat([self.ids, other.ids], 1), torch.cat([self.backprops, other.backprops], 1)
        return EmbeddingGrad(*both, self.num_embeddings, self.padding_idx)
