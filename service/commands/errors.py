"""Errors that a user reads on one line."""

import click


class CommandError(click.ClickException):
    """Something that is neither a wrong option nor a failed comparison: exit status 3."""

    exit_code = 3
