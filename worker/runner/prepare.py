"""Prepares arms: resolves them for the devices of this launcher, and checks out their Opacus."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.contract import Arm, ArmError, ErrorKind
from service.settings import Settings
from worker.checkout import Checkout, CheckoutError, Interrupted, Source
from worker.launch import Launcher, LaunchError
from worker.runner.follow import RunObserver, Stopped


class CannotPrepare(Exception):
    """An arm cannot be started."""

    def __init__(self, error: ArmError):
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True)
class Prepared:
    """An arm without `auto`, its Opacus a commit in place of a branch or tag, and the source to import it from."""

    arm: Arm
    source: Source


def make_checkout(settings: Settings) -> Checkout:
    """The checkout as the settings describe it."""
    return Checkout(settings.opacus_remote, Path(settings.cache_folder), settings.source_days)


def prepare(
    arms: Mapping[str, Arm], *, launcher: Launcher, checkout: Checkout, observer: RunObserver, stop: threading.Event
) -> dict[str, Prepared]:
    """Resolve every arm, then check out its source.

    Raises:
        CannotPrepare: an arm needs devices that are not here, or its source cannot be checked out.
        Stopped: `stop` was set.
    """
    try:
        resolved = {role: launcher.resolve(arm) for role, arm in arms.items()}
    except LaunchError as fault:
        raise CannotPrepare(ArmError(kind=ErrorKind.DEVICE, message=str(fault))) from fault
    if any(arm.opacus != "installed" for arm in resolved.values()):
        observer.phase("checkout")
    prepared = {}
    for role, arm in resolved.items():
        try:
            source = checkout.get(arm.opacus, stop)
        except CheckoutError as fault:
            raise CannotPrepare(ArmError(kind=ErrorKind.SOURCE, message=f"{role}: {fault}")) from fault
        except Interrupted as fault:
            raise Stopped from fault
        prepared[role] = Prepared(arm.model_copy(update={"opacus": source.opacus}), source)
    return prepared
