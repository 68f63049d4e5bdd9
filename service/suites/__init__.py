"""Suites of comparisons as TOML: the built-in ones are in this folder, a user's own in any file.

A file holds a `description`, `[[comparison]]` tables with the fields of a comparison, `[defaults]` for fields that a
table leaves out, and `include`, a list of other suites. Their comparisons come first, named `suite/name`.
"""

from service.suites.load import SuiteError, built_in, load

__all__ = ["SuiteError", "built_in", "load"]
