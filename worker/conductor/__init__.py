"""Conducts a comparison of the store: claims it, keeps its lease, has it run and records the outcome.

This is the only room that sees both the store and the launchers.
"""
