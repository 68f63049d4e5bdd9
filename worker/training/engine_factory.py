"""The privacy engine of an arm: that of its Opacus, or that of Flash Clipping for flash modes of Clipwatch."""

import opacus
from opacus import PrivacyEngine
from opacus.grad_sample import get_gsm_class

from service.contract import Arm, Mode, Provider
from worker.training.trainer import Unsupported


def make_engine(arm: Arm) -> PrivacyEngine:
    """An engine that knows the arm's mode.

    Raises:
        Unsupported: the Opacus under test has no such mode, or lacks what Clipwatch's flash modes build on.
    """
    if flash_from(arm) is Provider.CLIPWATCH:
        return _clipwatch_engine(arm)
    if not _knows(arm.mode):
        own = "flash of its own, no " if arm.mode.flash else ""
        raise Unsupported(f"this Opacus ({opacus.__version__}) has no {own}grad_sample_mode {arm.mode.value!r}")
    return PrivacyEngine()


def flash_from(arm: Arm) -> Provider | None:
    """Whose flash mode the arm runs, with `auto` resolved; None in other modes."""
    if not arm.mode.flash:
        return None
    if arm.provider is not Provider.AUTO:
        return arm.provider
    return Provider.NATIVE if _knows(arm.mode) else Provider.CLIPWATCH


def _knows(mode: Mode) -> bool:
    try:
        get_gsm_class(mode.value)
    except ValueError:
        return False
    return True


def _clipwatch_engine(arm: Arm) -> PrivacyEngine:
    try:
        # Late: it builds on more of Opacus than the other modes do, and an Opacus may lack it.
        from flash_clipping import PrivacyEngine as FlashPrivacyEngine  # noqa: PLC0415
    except ImportError as error:
        message = f"Clipwatch's flash modes do not run on this Opacus ({opacus.__version__}): {error}"
        raise Unsupported(message) from error
    # A loss that is not finite is for the judge to find, as in every mode.
    return FlashPrivacyEngine(kernels=arm.kernels.value, nonfinite="propagate")
