"""The ledger: the contributions of one backward, the small ones together, since launches are all that they cost."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping

import torch

from worker.flash.backend import Backend
from worker.flash.contributions import Contribution, PerSample, Product
from worker.flash.planner import SMALL

Gradients = Iterator[tuple[str, torch.Tensor]]


class Ledger:
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
        for members in alike.values():
            found.update(dict.fromkeys(members, _entry(members, dtypes[next(iter(members))])))
        self._entries = {name: found[name] for name in contributions}

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """Squared norms of each sample's gradient by all parameters together, (B,)."""
        entries = dict.fromkeys(self._entries.values())
        return torch.cat([entry.squared_norms(backend) for entry in entries]).sum(dim=0)

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

    @abstractmethod
    def squared_norms(self, backend: Backend) -> torch.Tensor:
        """(n, B): rows that add up to those of all these parameters."""

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
        return self._contribution.squared_norms(backend).unsqueeze(0)

    def by_parameter(self, backend: Backend) -> Gradients:
        yield self._name, self._contribution.squared_norms(backend)

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        yield self._name, self._contribution.clipped(factors, backend).to(self._dtype)


class _Joined(_Entry):
    """Per-sample gradients side by side, as one of all their parameters, (B, P)."""

    def __init__(self, members: Mapping[str, PerSample], dtype: torch.dtype):
        self._dtype = dtype
        self._shapes = {name: member.gradients.shape[1:] for name, member in members.items()}
        self._all = PerSample(torch.cat([member.gradients.flatten(1) for member in members.values()], 1))

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return self._all.squared_norms(backend).unsqueeze(0)

    def by_parameter(self, backend: Backend) -> Gradients:
        pieces = self._all.gradients.split([shape.numel() for shape in self._shapes.values()], dim=1)
        yield from zip(self._shapes, (PerSample(piece).squared_norms(backend) for piece in pieces), strict=True)

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        pieces = (
            self._all.clipped(factors, backend)
            .to(self._dtype)
            .split([shape.numel() for shape in self._shapes.values()])
        )
        for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True):
            yield name, piece.view(shape)


class _Stacked(_Entry):
    """Products of one shape as one of n·B samples."""

    def __init__(self, members: Mapping[str, Product], dtype: torch.dtype):
        self._dtype = dtype
        self._names, parts = list(members), list(members.values())
        self._activations = torch.cat([part.activations for part in parts])
        self._backprops = torch.cat([part.backprops for part in parts])

    def squared_norms(self, backend: Backend) -> torch.Tensor:
        return backend.linear_weight(self._activations, self._backprops).view(len(self._names), -1)

    def by_parameter(self, backend: Backend) -> Gradients:
        yield from zip(self._names, self.squared_norms(backend), strict=True)

    def gradients(self, factors: torch.Tensor, backend: Backend) -> Gradients:
        n, a, g = len(self._names), self._activations, self._backprops
        a = backend.scaled(a, factors.repeat(n)).view(n, -1, a.shape[-1])
        products = (g.view(n, -1, g.shape[-1]).transpose(1, 2) @ a).to(self._dtype)
        yield from zip(self._names, products, strict=True)


def _kind(contribution: Contribution) -> Hashable | None:
    """What contributions that are handled together have in common; None of one that stays alone."""
    if type(contribution) is PerSample and contribution.gradients.numel() <= SMALL:
        return contribution.gradients.dtype
    if isinstance(contribution, Product):
        a, g = contribution.activations, contribution.backprops
        if a.numel() and g.numel() and max(a.numel(), g.numel()) <= SMALL:
            return a.shape, g.shape, g.dtype
    return None


def _entry(members: Mapping[str, Contribution], dtype: torch.dtype) -> _Entry:
    first = next(iter(members.values()))
    if _kind(first) is None:
        return _Single(members, dtype)
    return _Joined(members, dtype) if isinstance(first, PerSample) else _Stacked(members, dtype)
