import os

import opacus
import pytest
import torch


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


def pytest_configure():
    """Stops a run that is meant for one version of Opacus and finds another."""
    expected = os.environ.get("FLASH_CLIPPING_TEST_OPACUS")
    if expected and opacus.__version__ != expected:
        raise pytest.UsageError(f"these tests were to run on Opacus {expected}, not {opacus.__version__}")
