"""The judge: takes the records of two arms and gives gates, findings and plots.

Pure functions over the contract. Every gate counts: a value that is NaN, infinite, missing or of another shape fails,
also when both arms agree on it. The candidate is held to the reference. Each arm is held to the oracle, where there is
one, and to theory: the noise it should add, and the ε that follows from it. The candidate is held to its own
repetition. `judge` gives the verdict; `draw` writes the plots of a comparison. `worker.judge.gates` lists every gate;
`service.contract.limits` lists the default limits.
"""

from worker.judge.plots import draw
from worker.judge.verdict import judge

__all__ = ["draw", "judge"]
