"""How numbers, instants and arms read."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from service.contract import Comparison
from service.web import formatting as words

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.23456e-7, "1.235e-07"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        ("NaN", "NaN"),
        ("Infinity", "∞"),
        ("-Infinity", "−∞"),
    ],
)
def test_numbers(value, text) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (-1, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3_725, "1 h 2 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds, text) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "just now"), (59, "just now"), (60, "1 min ago"), (7_300, "2 h ago")]
)
def test_ages(seconds, text) -> None:
    assert words.age(NOON - timedelta(seconds=seconds), NOON) == text


def test_arms_and_workloads() -> None:
    assert words.arm_text({"mode": "flash", "world_size": 4}) == "flash × 4"
    assert words.arm_text({"mode": "flash", "world_size": None}) == "flash"
    assert words.arm_text({"mode": "flash", "world_size": None}, {"world_size": 2}) == "flash × 2"
    document = Comparison().model_dump(mode="json")
    assert words.workload_text(document) == "32 steps of 32 × 64 tokens · 3 layers of 512 · σ 1"
    assert words.workload_text({"workload": {"of": "another version"}}) == ""
