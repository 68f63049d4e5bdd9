"""Adaptive clipping: the constants of its rule, and the rule itself for the oracle.

Andrew et al., "Differentially Private Learning with Adaptive Clipping" (2021): C follows a quantile of the norms.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from service.contract import Clipping, Workload, unclipped_num_std


@dataclass(frozen=True)
class AdaptiveRule:
    """How C moves. Fields are named as the arguments of Opacus' `make_private`."""

    unclipped_num_std: float
    target_unclipped_quantile: float = 0.5
    clipbound_learning_rate: float = 0.2
    min_clipbound: float = 1e-6
    max_clipbound: float = 1e6

    @classmethod
    def of(cls, workload: Workload) -> "AdaptiveRule":
        return cls(unclipped_num_std(workload))

    def next_bound(self, bound: float, unclipped: float, batch_size: int) -> float:
        """C after a step in which, noise included, `unclipped` of `batch_size` norms were at most C: equation 2."""
        error = unclipped / batch_size - self.target_unclipped_quantile
        moved = bound * math.exp(-self.clipbound_learning_rate * error)
        return min(max(moved, self.min_clipbound), self.max_clipbound)


def clipping_options(workload: Workload) -> dict[str, Any]:
    """The arguments of `make_private` for clipping, but for C."""
    if workload.clipping is Clipping.FLAT:
        return {}
    return {"clipping": "adaptive", **asdict(AdaptiveRule.of(workload))}
