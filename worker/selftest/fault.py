"""What a fault is, and where those that have been declared are kept."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A fault and what finding it means.

    `apply` is "module:function", called in every rank. `where` names the code that is wrong. `step` is the first
    step at which training differs from what is right, from 1, or nothing when only the end does. `parameters` are
    patterns (fnmatch) of the parameters at fault; none when no single parameter is. `suites` are those that are
    expected to find it.
    """

    id: str
    words: str
    where: str
    apply: str
    step: int | None
    parameters: tuple[str, ...]
    suites: tuple[str, ...]


FAULTS: dict[str, Fault] = {}


def fault(
    where: str,
    *,
    step: int | None = 1,
    parameters: tuple[str, ...] = (),
    suites: tuple[str, ...] = ("parity",),
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Declares the decorated function as a fault; its name is the id and its docstring the words."""

    def declare(function: Callable[[], None]) -> Callable[[], None]:
        name = function.__name__.replace("_", "-")
        words = inspect.getdoc(function)
        assert words, f"fault {name} needs a docstring"
        assert name not in FAULTS, f"two faults are named {name}"
        apply = f"{function.__module__}:{function.__name__}"
        FAULTS[name] = Fault(name, " ".join(words.split()), where, apply, step, parameters, suites)
        return function

    return declare
