"""Turns the contributions of one backward into norms and clipped gradients.

Contributions of small layers are handled together, because a launch costs more than what it computes for one of them.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

import torch

from flash_clipping.backend import Backend
from flash_clipping.contributions import Contribution, DeferredSum, Factors, PerSample
from flash_clipping.planner import SMALL, batched, is_small
from flash_clipping.types import Pair

# Names of parameters, with a tensor for each.
Gradients = Iterator[tuple[str, torch.Tensor]]
Kind = TypeVar("Kind", bound=Contribution)


class GradientAccumulator:
    """The contributions of all parameters. `gradients` can be called once, after the norms were computed."""

    def __init__(self, contributions: Mapping[str, Contribution], dtypes: Mapping[str, torch.dtype]):
        """
        Args:
            contributions: by parameter name.
            dtypes: what gradients are rounded to, by parameter name.

        Raises:
            ValueError: contributions disagree about the number of samples.
        """
        sizes = {name: contribution.samples for name, contribution in contributions.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"layers disagree about the number of samples: {sizes}. The first dimension of every layer's input "
                "must be the batch (expand position ids to (batch, tokens))"
            )
        groups: dict[Hashable, dict[str, Contribution]] = defaultdict(dict)
        for name, contribution in contributions.items():
            key = _group_key(contribution)
            groups[(key, dtypes[name]) if key else name][name] = contribution
        entries: dict[str, _Entry] = {}
        for key, members in groups.items():
            entry = _entry(members, dtypes[next(iter(members))], alone=isinstance(key, str))
            entries.update(dict.fromkeys(members, entry))
        self._entries = {name: entries[name] for name in contributions}

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """Squared norm of each sample's gradient with respect to all parameters together, (B,)."""
        entries = dict.fromkeys(self._entries.values())
        pairs = [pair for entry in entries for pair in entry.pairs()]
        rows = [backend.linear_weights(pairs)] if pairs else []
        rows += [entry.squared_norms(backend) for entry in entries if not entry.pairs()]
        return torch.stack(rows).sum(dim=0)

    def squared_norms_by_parameter(self, backend: Backend) -> dict[str, torch.Tensor]:
        """Squared norm of each sample's gradient with respect to each parameter, (B,), by name.

        It is slower than `squared_norms` and helps to find a fault.
        """
        squares: dict[str, torch.Tensor] = {}
        for entry in dict.fromkeys(self._entries.values()):
            squares.update(entry.by_parameter(backend))
        return {name: squares[name] for name in self._entries}

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        """Name and clipped gradient of each parameter for factors (B,), in the order of the contributions.

        All ranks reduce gradients in this order, so it must not depend on the samples; the groups do. A contribution is
        dropped once its gradient is computed, so memory falls as gradients are written.
        """
        ready: dict[str, torch.Tensor] = {}
        for name in list(self._entries):
            entry = self._entries.pop(name)
            if name not in ready:
                ready.update(entry.gradients(factors, backend))
            yield name, ready.pop(name)


class _Entry(ABC):
    """Contributions that are handled together."""

    def pairs(self) -> list[Pair]:
        """The pairs of Linear weights, whose norms are computed together with those of all other entries."""
        return []

    @abstractmethod
    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """Squared norms with respect to all these parameters together, (B,)."""

    @abstractmethod
    def by_parameter(self, backend: Backend) -> Gradients:
        """Name and squared norms (B,) of each of these parameters."""

    @abstractmethod
    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        """Name and clipped gradient of each of these parameters, for factors (B,)."""


class _Single(_Entry):
    """One contribution."""

    def __init__(self, members: Mapping[str, Contribution], dtype: torch.dtype):
        self._dtype = dtype
        [(self._name, self._contribution)] = members.items()

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return self._contribution.squared_norms(backend)

    def by_parameter(self, backend: Backend) -> Gradients:
        yield self._name, self._contribution.squared_norms(backend)

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        yield self._name, self._contribution.clipped(factors, backend).to(self._dtype)


class _Joined(_Entry):
    """Written per-sample gradients of several parameters, side by side in one tensor (B, P)."""

    def __init__(self, members: Mapping[str, PerSample], dtype: torch.dtype):
        self._dtype = dtype
        self._shapes = {name: member.gradients.shape[1:] for name, member in members.items()}
        self._all: PerSample | None = PerSample(torch.cat([m.gradients.flatten(1) for m in members.values()], 1))

    def _joined(self, backend: Backend) -> PerSample:
        assert self._all is not None
        return self._all

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return self._joined(backend).squared_norms(backend)

    def by_parameter(self, backend: Backend) -> Gradients:
        pieces = self._joined(backend).gradients.split([shape.numel() for shape in self._shapes.values()], dim=1)
        yield from zip(self._shapes, (PerSample(piece).squared_norms(backend) for piece in pieces), strict=True)

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        whole = self._joined(backend).clipped(factors, backend).to(self._dtype)
        pieces = whole.split([shape.numel() for shape in self._shapes.values()])
        for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True):
            yield name, piece.view(shape)


class _DeferredSums(_Joined):
    """Per-sample gradients of several parameters that are not computed yet."""

    def __init__(self, members: Mapping[str, DeferredSum], dtype: torch.dtype):
        self._dtype = dtype
        self._shapes = {name: member.shape for name, member in members.items()}
        self._terms = [member.term for member in members.values()]
        self._all = None

    def _joined(self, backend: Backend) -> PerSample:
        if self._all is None:
            self._all, self._terms = PerSample(backend.token_sums(self._terms)), []
        return self._all


class _Products(_Entry):
    """Pairs of Linear weights; subclasses differ in how they compute the gradients."""

    def __init__(self, members: Mapping[str, Factors], dtype: torch.dtype):
        self._dtype = dtype
        self._members = dict(members)

    def pairs(self) -> list[Pair]:
        return [member.pair for member in self._members.values()]

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return backend.linear_weights(self.pairs())

    def by_parameter(self, backend: Backend) -> Gradients:
        for name, member in self._members.items():
            yield name, member.squared_norms(backend)


class _Small(_Products):
    """Pairs of few elements, which are scaled in one launch."""

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        # Layers may share an input, as query, key and value do. It is scaled once.
        distinct: dict[Hashable, list[str]] = defaultdict(list)
        for name, member in self._members.items():
            distinct[_view(member.narrow)].append(name)
        for some in batched(distinct.values(), lambda names: self._members[names[0]].narrow.numel()):
            narrow = [self._members[names[0]].narrow for names in some]
            for names, scaled in zip(some, backend.all_scaled(narrow, factors), strict=True):
                for name in names:
                    member = self._members.pop(name)
                    a, g = member.pair
                    a, g = (scaled, g) if member.narrow is a else (a, scaled)
                    yield name, torch.mm(g.flatten(0, 1).t(), a.flatten(0, 1)).to(self._dtype)


class _Siblings(_Products):
    """Pairs of layers that share one input, as query, key and value do, or the pair of one layer."""

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        activations = next(iter(self._members.values())).activations
        d_in, d_out = activations.shape[2], sum(member.backprops.shape[2] for member in self._members.values())
        scaled = backend.scaled(activations, factors) if d_in <= d_out else None
        for name in list(self._members):
            member = self._members.pop(name)
            if scaled is None:
                gradient = member.clipped(factors, backend)
            else:
                gradient = backend.linear_product(scaled, member.backprops)
            yield name, gradient.to(self._dtype)


def _view(tensor: torch.Tensor) -> Hashable:
    """A key that is equal for tensors of the same elements in the same order."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _group_key(contribution: Contribution) -> Hashable | None:
    """A key that is equal for contributions that are handled together; None if this one is handled alone."""
    if type(contribution) is PerSample and contribution.gradients.numel() <= SMALL:
        return contribution.gradients.dtype
    if isinstance(contribution, DeferredSum):
        g = contribution.term.backprops
        return DeferredSum, g.dtype == torch.float64, is_small(g)
    if isinstance(contribution, Factors):
        a, g = contribution.pair
        return (Factors, g.dtype) if _is_small_pair(contribution) else (Factors, _view(a), g.dtype)
    return None


def _is_small_pair(product: Factors) -> bool:
    a, g = product.pair
    return bool(a.numel() and g.numel()) and is_small(a) and is_small(g)


def _entry(members: Mapping[str, Contribution], dtype: torch.dtype, *, alone: bool) -> _Entry:
    """The entry of contributions with one group key, which are of one class."""
    if alone:
        return _Single(members, dtype)
    if sums := _of_class(DeferredSum, members):
        return _DeferredSums(sums, dtype)
    if gradients := _of_class(PerSample, members):
        return _Joined(gradients, dtype)
    factors = _of_class(Factors, members)
    return (_Small if all(map(_is_small_pair, factors.values())) else _Siblings)(factors, dtype)


def _of_class(kind: type[Kind], members: Mapping[str, Contribution]) -> dict[str, Kind]:
    return {name: member for name, member in members.items() if isinstance(member, kind)}
