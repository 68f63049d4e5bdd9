"""The judge: the records of two arms in, gates, findings and plots out.

Pure functions over the contract. Every gate counts: what is NaN, infinite, missing or of another shape fails,
also when both arms agree on it. The candidate is held to the reference, both to the oracle where there is one and to
theory (the noise they should add, the ε that follows from it), and the candidate to its own repetition. `judge` gives
the verdict; `draw` writes the plots of a comparison. The limits are one table, `service.contract.limits`.
"""

from worker.judge.gates import judge
from worker.judge.plots import draw

__all__ = ["draw", "judge"]
