"""Reads a suite from TOML."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.contract import Comparison, Suite
from service.validation import first_error

FOLDER = Path(__file__).parent
KEYS = {"description", "include", "defaults", "comparison"}

Table = dict[str, Any]


class SuiteError(ValueError):
    """A suite that cannot be read. The message is one line with the file, the comparison and the field."""


def built_in() -> list[str]:
    """Names of the suites that come with Clipwatch."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(suite: str | Path) -> Suite:
    """The built-in suite of that name, or the one in that file.

    Raises:
        SuiteError: there is no such suite, or it is not a suite.
    """
    path = FOLDER / f"{suite}.toml" if str(suite) in built_in() else Path(suite)
    return _load(path, ())


def _load(path: Path, including: tuple[Path, ...]) -> Suite:
    document = _parse(path)
    defaults = _table(path, "defaults", document.get("defaults", {}))
    comparisons = [comparison for name in document.get("include", []) for comparison in _include(name, path, including)]
    for number, table in enumerate(document.get("comparison", []), start=1):
        comparisons.append(_comparison(path, number, merged(defaults, _table(path, "comparison", table))))
    try:
        return Suite(name=path.stem, description=document.get("description", ""), comparisons=tuple(comparisons))
    except ValidationError as fault:
        raise SuiteError(f"{path}: {first_error(fault)}") from fault


def _parse(path: Path) -> Table:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise SuiteError(f"no suite {path}: built in are {', '.join(built_in())}; your own is a .toml file") from fault
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise SuiteError(f"{path}: {fault}") from fault
    if unknown := sorted(document.keys() - KEYS):
        raise SuiteError(f"{path}: unknown key {unknown[0]!r}; a suite has {', '.join(sorted(KEYS))}")
    for key in ("include", "comparison"):
        if not isinstance(document.get(key, []), list):
            raise SuiteError(
                f"{path}: {key} must be a list" + (": write [[comparison]]" if key == "comparison" else "")
            )
    return document


def _include(name: Any, path: Path, including: tuple[Path, ...]) -> list[Comparison]:
    if not isinstance(name, str):
        raise SuiteError(f"{path}: include: {name!r} is not the name of a suite")
    target = (FOLDER / f"{name}.toml" if name in built_in() else path.parent / name).resolve()
    if target in (*including, path.resolve()):
        raise SuiteError(f"{path}: include: {name} includes itself")
    suite = _load(target, (*including, path.resolve()))
    return [c.model_copy(update={"name": f"{suite.name}/{c.name}"}) for c in suite.comparisons]


def _comparison(path: Path, number: int, table: Table) -> Comparison:
    try:
        return Comparison.model_validate(table)
    except ValidationError as fault:
        name = table.get("name", f"number {number}")
        raise SuiteError(f"{path}: comparison {name!r}: {first_error(fault)}") from fault


def _table(path: Path, key: str, value: Any) -> Table:
    if not isinstance(value, dict):
        raise SuiteError(f"{path}: {key} must be a table")
    return value


def merged(below: Table, above: Table) -> Table:
    """Both tables, merged at every level; a value of `above` replaces that of `below`."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = merged(below[key], above[key])
    return both
