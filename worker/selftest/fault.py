"""What a fault is, and the table of declared faults."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A fault and what finding it means.

    `apply` is "module:function", called in every rank. `where` names the wrong code. `step` is the first step, from 1,
    at which training differs from correct training, or None if only the end differs. `parameters` are patterns
    (fnmatch) of the parameters at fault; it is empty for a fault of no single parameter. `suites` are expected to find
    the fault.
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
    """Declare the decorated function as a fault: its name becomes the id, and its docstring the description."""

    def declare(function: Callable[[], None]) -> Callable[[], None]:
        name = function.__name__.replace("_", "-")
        words = inspect.getdoc(function)
        assert words, f"fault {name} needs a docstring"
        assert name not in FAULTS, f"two faults are named {name}"
        apply = f"{function.__module__}:{function.__name__}"
        FAULTS[name] = Fault(name, " ".join(words.split()), where, apply, step, parameters, suites)
        return function

    return declare
