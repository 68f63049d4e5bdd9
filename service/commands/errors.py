"""Exit statuses of the commands, and the error that a command shows as one line."""

import click

PASSED, FAILED, ERROR, INTERRUPTED = 0, 1, 3, 130


class CommandError(click.ClickException):
    """An error that is neither a wrong option nor a failed comparison: exit status 3."""

    exit_code = ERROR


def exit_status(verdict: str | None) -> int:
    """0 for `passed`, 1 for `failed`, 3 for every other verdict."""
    return {"passed": PASSED, "failed": FAILED}.get(verdict or "", ERROR)
