"""Runs one comparison: prepares the sources, schedules the arms, follows them and has them judged. Needs no service."""

from worker.runner.comparison import ArmOutcome, Outcome, RunObserver, Stopped, run_comparison

__all__ = ["ArmOutcome", "Outcome", "RunObserver", "Stopped", "run_comparison"]
