"""Conducts a comparison: runs both arms, has them judged and drawn, and (for the service) records the outcome.

`run_comparison` needs no service; `conduct` claims a comparison from the store, keeps its lease and records what
`run_comparison` gave. This is the only room that sees both the store and the launcher.
"""

from worker.runner.comparison import ArmOutcome, Observer, Outcome, Stopped, run_comparison

__all__ = ["ArmOutcome", "Observer", "Outcome", "Stopped", "run_comparison"]
