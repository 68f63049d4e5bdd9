"""Tests, and the programs beside them. The library is found in the checkout where it is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "flash_clipping" / "src"))
