"""The judge: the records of two arms in, gates, a finding and plots out.

Pure functions over the contract. Every gate counts: what is NaN, infinite, missing or of another shape fails,
also when both arms agree on it. `judge` gives the verdict; `draw` writes the four plots of a comparison.
"""

from worker.judge.gates import judge
from worker.judge.plots import draw

__all__ = ["draw", "judge"]
