"""Proves that suites find faults: runs them against arms with a fault and reports which gate found it.

A fault is a function that patches Opacus or our code at run time, in every rank of every arm but the oracle's, as a
faulty commit would. `fault` declares one, `edit` patches like a commit does, by replacing source text.
"""

from worker.selftest.edit import edit
from worker.selftest.fault import FAULTS, Fault, fault

__all__ = ["FAULTS", "Fault", "edit", "fault"]
