"""The plots: two files each, small, equal for equal input, for any record there may be."""

import math
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest

from service.contract import ArmRecord
from tests.worker.judge.records import Faults, comparison, record, trained, with_metric
from worker.judge import draw

NAMES = ["loss", "loss_difference", "gradient_norms", "parameter_norms", "gradient_differences"]
ALL_NAN = record()
for step_number in range(1, 7):
    for metric_name in ("loss", "grad_norm_mean", "grad_norm_max", "parameter_norm"):
        ALL_NAN = with_metric(ALL_NAN, step_number, metric_name, math.nan)

HUGE = with_metric(with_metric(record(), 2, "loss", 1e308), 3, "loss", -1e308)
PAIRS: dict[str, tuple[ArmRecord, ArmRecord]] = {
    "equal": (record(), record(world_size=2)),
    "apart": (record(), with_metric(record(), 3, "loss", 2.5)),
    "some NaN": (record(), with_metric(with_metric(record(), 3, "loss", math.nan), 4, "loss", math.inf)),
    "all NaN": (ALL_NAN, ALL_NAN),
    "huge": (record(), HUGE),
    "one step": (record(steps=1), record(steps=1)),
    "different length": (record(), record(steps=3)),
    "no step in common": (record(), record().model_copy(update={"steps": []})),
    "nothing": (ArmRecord(), ArmRecord()),
    "long": (record(steps=1000), record(steps=1000)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_any_record_is_drawn(name: str, private: bool, tmp_path: Path) -> None:
    paths = draw(comparison(private), *PAIRS[name], tmp_path / "plots")
    assert [path.name for path in paths] == [f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")]
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
            assert path.stat().st_size <= 60_000
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_a_tolerance_of_zero_is_drawn(tmp_path: Path) -> None:
    assert len(draw(comparison(loss=0.0), record(), record(), tmp_path)) == 2 * len(NAMES)


def test_equal_input_gives_equal_bytes_also_from_threads(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    threads = [
        threading.Thread(target=draw, args=(comparison(), record(), record(world_size=2), folder)) for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in NAMES:
        for suffix in ("png", "svg"):
            assert len({(folder / f"{name}.{suffix}").read_bytes() for folder in folders}) == 1


def test_the_curves_carry_what_was_recorded(tmp_path: Path) -> None:
    draw(comparison(), record(), record(), tmp_path / "one")
    draw(comparison(), record(), with_metric(record(), 3, "loss", 2.5), tmp_path / "two")
    differ = {name for name in NAMES if _bytes(tmp_path / "one", name) != _bytes(tmp_path / "two", name)}
    assert differ == {"loss", "loss_difference"}


def test_the_parameters_that_are_furthest_apart_are_drawn(tmp_path: Path) -> None:
    def half(step, sums):
        sums["head.weight"] *= 0.5

    draw(comparison(), record(), trained(Faults(sums=half)), tmp_path)
    drawn = (tmp_path / "gradient_differences.svg").read_text()
    assert "head.weight" in drawn
    assert "tolerance 5e-05" in drawn


def _bytes(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.svg").read_bytes()
