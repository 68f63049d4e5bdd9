"""Accumulates the contributions of one backward. Small ones are handled together: their cost is the launch alone."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping

import torch

from flash_clipping.backend import Backend
from flash_clipping.contributions import Contribution, DeferredSum, Factors, PerSample
from flash_clipping.planner import SMALL, batched, is_small
from flash_clipping.types import Pair

Gradients = Iterator[tuple[str, torch.Tensor]]


class GradientAccumulator:
    """What all parameters contribute. `gradients` may be asked for once, after the norms."""

    def __init__(self, contributions: Mapping[str, Contribution], dtypes: Mapping[str, torch.dtype]):
        """
        Args:
            contributions: by the parameter's name.
            dtypes: of the parameters, by the same names; gradients are rounded to them.

        Raises:
            ValueError: contributions disagree about the number of samples.
        """
        sizes = {name: contribution.samples for name, contribution in contributions.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"layers disagree about the number of samples: {sizes}. The first dimension of every layer's input "
                "must be the batch (expand position ids to (batch, tokens))"
            )
        alike: dict[Hashable, dict[str, Contribution]] = defaultdict(dict)
        for name, contribution in contributions.items():
            kind = _kind(contribution)
            alike[(kind, dtypes[name]) if kind else name][name] = contribution
        found: dict[str, _Entry] = {}
        for key, members in alike.items():
            found.update(
                dict.fromkeys(members, _entry(members, dtypes[next(iter(members))], alone=isinstance(key, str)))
            )
        self._entries = {name: found[name] for name in contributions}

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """Squared norms of each sample's gradient by all parameters together, (B,)."""
        entries = dict.fromkeys(self._entries.values())
        pairs = [pair for entry in entries for pair in entry.pairs()]
        rows = [backend.linear_weights(pairs)] if pairs else []
        rows += [entry.squared_norms(backend) for entry in entries if not entry.pairs()]
        return torch.stack(rows).sum(dim=0)

    def squared_norms_by_parameter(self, backend: Backend) -> dict[str, torch.Tensor]:
        """Squared norms of each sample's gradient by each parameter, (B,): slower, for those who look for a fault."""
        found: dict[str, torch.Tensor] = {}
        for entry in dict.fromkeys(self._entries.values()):
            found.update(entry.by_parameter(backend))
        return {name: found[name] for name in self._entries}

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        """Name and clipped gradient of each parameter for factors (B,), in the order of the contributions.

        How they are taken together depends on the samples here, the order must not: ranks reduce one by one. What is
        used up is dropped on the way, so memory falls as gradients are written.
        """
        ready: dict[str, torch.Tensor] = {}
        for name in list(self._entries):
            entry = self._entries.pop(name)
            if name not in ready:
                ready.update(entry.gradients(factors, backend))
            yield name, ready.pop(name)


class _Entry(ABC):
    """Contributions of some parameters."""

    def pairs(self) -> list[Pair]:
        """Of Linear weights, whose norms are taken together with those of all other entries."""
        return []

    @abstractmethod
    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """Those of all these parameters added up, (B,)."""

    @abstractmethod
    def by_parameter(self, backend: Backend) -> Gradients:
        """Name and squared norms (B,) of each of these parameters."""

    @abstractmethod
    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients: ...


class _Single(_Entry):
    """One contribution by itself."""

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
    """Per-sample gradients side by side, as one of all their parameters, (B, P)."""

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
    """The same of those that are not computed yet."""

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
    """Pairs of Linear weights."""

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
    """Of few elements: launches are all that they cost."""

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        # The query, key and value of attention share an input: it is scaled once.
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
    """Of one input, as those of query, key and value are, or of one layer."""

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
    """What two tensors of the same elements have in common."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _kind(contribution: Contribution) -> Hashable | None:
    """What contributions that are handled together have in common; None of one that stays alone."""
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
    first = next(iter(members.values()))
    if alone:
        return _Single(members, dtype)
    if isinstance(first, DeferredSum):
        return _DeferredSums(members, dtype)
    if isinstance(first, PerSample):
        return _Joined(members, dtype)
    return (_Small if _is_small_pair(first) else _Siblings)(members, dtype)
