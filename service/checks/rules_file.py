"""Reads the rules and the suites that they name."""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from service.contract import Rules, Suite
from service.settings import Settings
from service.suites import SuiteError, built_in, load
from service.validation import first_error


class RulesError(ValueError):
    """The rules cannot be read. One line that names the file and the field."""


def read_rules(settings: Settings) -> Rules | None:
    """The rules file that the settings name, or None if they name none. Read each time: an edit needs no restart.

    Raises:
        RulesError: there is no such file, it is not a rules file, or a suite in it cannot be read.
    """
    path = settings.rules
    if path is None:
        return None
    try:
        rules = Rules.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as fault:
        raise RulesError(f"{path}: {first_error(fault)}") from fault
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise RulesError(f"{path}: {fault}") from fault
    return rules


def read_suite(settings: Settings, name: str) -> Suite:
    """The suite of that name: one that is built in, or one that the rules name, in a file beside them.

    Raises:
        SuiteError: neither has it, or it cannot be read.
        RulesError: the rules cannot be read.
    """
    if name in built_in():
        return load(name)
    rules = read_rules(settings)
    named = {Path(suite).stem: suite for rule in (rules.rules if rules else ()) for suite in rule.suites}
    if name not in named and name not in named.values():
        known = sorted({*built_in(), *named})
        raise SuiteError(f"no suite {name!r}: there are {', '.join(known)}")
    assert settings.rules is not None
    return load(settings.rules.parent / named.get(name, name))
