"""Released versions from the package index, by pip."""

import re
import sys
import threading
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.checkout.commands import CheckoutError, CommandError, run

VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*")


def download(version: str, folder: Path, stop: threading.Event) -> None:
    """Unpack the package `opacus` of a release into `folder`.

    Wheels only: an sdist would run its own code here to be built.

    Raises:
        CheckoutError: there is no such release, or it cannot be had.
    """
    with TemporaryDirectory(dir=folder) as scratch:
        options = ("--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input")
        command = (sys.executable, "-m", "pip", "download", *options, "--dest", scratch, f"opacus=={version}")
        try:
            run(command, stop)
        except CommandError as error:
            raise CheckoutError(f"pip cannot download opacus {version}: {error}") from None
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith("opacus/")])
