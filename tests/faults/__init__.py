"""Faults that Clipwatch must find: what a wrong commit to Opacus or to Clipwatch could do.

Importing this package declares them all. `clipwatch selftest` runs suites against them.
"""

from tests.faults import accounting, batches, clipping, layers, noise, norms, reduction, state

__all__ = ["accounting", "batches", "clipping", "layers", "noise", "norms", "reduction", "state"]
