"""Suites of comparisons as TOML: the built-in ones lie in this folder, a user's own anywhere.

A file holds a `description`, `[[comparison]]` tables with the fields of a comparison, `[defaults]` that each of them
is laid over, and `include`, a list of other suites whose comparisons come first under `suite/name`.
"""

from service.suites.load import SuiteError, built_in, load

__all__ = ["SuiteError", "built_in", "load"]
