"""Conducts a comparison of the store: claims it, keeps its lease, has it run, and records the outcome.

With `worker.fleet` this is the only room that sees both the store and the launchers.
"""
