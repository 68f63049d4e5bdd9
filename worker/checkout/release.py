"""Released versions from the package index, by pip."""

import re
import stat
import sys
import threading
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.checkout.commands import CheckoutError, ProgramError, run
from worker.checkout.tree import PACKAGE
from worker.checkout.writer import PackageWriter, UnsafeFiles, shown

VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*")


def download(version: str, folder: Path, stop: threading.Event) -> None:
    """Unpacks the package `opacus` of a release into `folder`.

    Wheels only: an sdist would run its own code here to be built.

    Raises:
        CheckoutError: there is no such release, it cannot be downloaded, or it has files that may not be unpacked.
    """
    with TemporaryDirectory(dir=folder) as scratch:
        options = ("--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input")
        command = (sys.executable, "-m", "pip", "download", *options, "--dest", scratch, f"opacus=={version}")
        try:
            run(command, stop)
        except ProgramError as error:
            raise CheckoutError(f"pip cannot download opacus {version}: {error}") from None
        (wheel,) = Path(scratch).glob("*.whl")
        try:
            _unpack(wheel, folder / PACKAGE)
        except (UnsafeFiles, zipfile.BadZipFile, NotImplementedError) as error:
            raise CheckoutError(f"the wheel of opacus {version} cannot be unpacked: {error}") from None


def _unpack(wheel: Path, package: Path) -> None:
    """Writes the package's files of a wheel into the new folder `package`."""
    package.mkdir()
    writer = PackageWriter(package)
    folders: set[tuple[str, ...]] = set()
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            first, *parts = entry.filename.split("/")
            if first != PACKAGE or entry.is_dir():
                continue
            mode = entry.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise UnsafeFiles(f"{shown(parts)} is no ordinary file")
            for depth in range(1, len(parts)):
                if tuple(parts[:depth]) not in folders:
                    writer.make_folder(parts[:depth])
                    folders.add(tuple(parts[:depth]))
            writer.reserve(entry.file_size)
            writer.write_file(parts, archive.read(entry), executable=bool(mode & 0o100))
    writer.finish()
