"""The embedded broker: kombu's filesystem transport, made safe for several readers and writers at a time."""

import os
import uuid
from pathlib import Path
from queue import Empty
from time import time_ns
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """A channel that adds and takes messages by renaming files, which is atomic.

    Kombu's own channel writes into a file that a reader may already be taking. It takes a message by moving it to the
    system's temporary folder; between two file systems that is a copy, which two readers can both make.
    """

    def _put(self, queue: Any, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{time_ns():020}_{uuid.uuid4().hex}.{queue}.msg"
        unfinished = folder / f"{name}.new"
        unfinished.write_text(dumps(payload))  # type: ignore[no-untyped-call]
        unfinished.rename(folder / name)

    def _get(self, queue: Any, timeout: Any = None) -> Any:
        folder = Path(self.data_folder_in)
        for name in sorted(os.listdir(folder)):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = folder / f"{name}.taken"
            try:
                (folder / name).rename(taken)
            except FileNotFoundError:
                continue
            try:
                return loads(taken.read_text())  # type: ignore[no-untyped-call]
            finally:
                taken.unlink()
        raise Empty


class Transport(filesystem.Transport):
    """Kombu's transport with the channel above."""

    Channel = Channel


def folder_options(folder: Path) -> dict[str, Any]:
    """Transport options for a broker in `folder`, which is created if it is missing."""
    messages, control = folder / "messages", folder / "control"
    for path in (messages, control):
        path.mkdir(parents=True, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.2,
    }
