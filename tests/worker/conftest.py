"""One fork server for all tests of a pytest worker: importing torch and Opacus takes longer than most arms."""

import os
from collections.abc import Iterator

import pytest

from worker.launch.fork.launcher import ForkLauncher


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkLauncher]:
    """Starts arms by forking. Its server process starts with the first arm."""
    with ForkLauncher(os.environ) as launcher:
        yield launcher
