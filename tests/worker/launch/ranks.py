"""What the ranks of `test_forked` do before they train."""

import json
import os
from pathlib import Path

import torch


def report():
    """Write down what this rank was given."""
    found = {
        "environment": list(os.environ),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_initialized(),
    }
    Path(f"report-{os.environ['RANK']}.json").write_text(json.dumps(found))
