import pytest

from service.contract import Comparison, Mode
from service.suites import SuiteError, built_in, load

COMPARISON = """
[[comparison]]
name = "one"
reference = { mode = "hooks" }
candidate = { mode = "ghost", world_size = 2 }
"""


def written(tmp_path, text, name="own.toml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_built_in_suites_can_be_read_and_full_holds_all_of_them():
    assert set(built_in()) == {"default", "smoke", "parity", "clipping", "privacy", "precision", "full"}
    full = {comparison.name for comparison in load("full").comparisons}
    parts = {name: load(name) for name in ("parity", "clipping", "privacy", "precision")}
    assert full == {f"{name}/{c.name}" for name, suite in parts.items() for c in suite.comparisons}
    assert all(load(name).description for name in built_in())


def test_the_default_suite_is_the_comparison_without_any_field():
    assert load("default").comparisons == (Comparison(name="flash, flash_fsdp"),)


def test_no_built_in_comparison_asks_for_what_is_known_to_fail():
    """Stock ghost_fsdp halves the update of a summed loss."""
    for comparison in load("full").comparisons:
        modes = {comparison.reference.mode, comparison.candidate.mode}
        assert not (comparison.workload.loss_reduction == "sum" and Mode.GHOST_FSDP in modes), comparison.name


def test_defaults_lie_beneath_every_comparison_table_by_table(tmp_path):
    text = """
description = "mine"
[defaults.workload]
batch_size = 4
seed = 7
[defaults.workload.model]
hidden_size = 16
num_heads = 2
"""
    more = '[comparison.workload]\nseed = 8\n[comparison.workload.model]\nhead = "lm"\n'
    suite = load(written(tmp_path, text + COMPARISON + more + COMPARISON.replace('"one"', '"two"')))
    assert (suite.name, suite.description) == ("own", "mine")
    one, two = suite.comparisons
    assert (one.workload.seed, one.workload.batch_size, one.workload.model.hidden_size) == (8, 4, 16)
    assert one.workload.model.head == "lm"
    assert (two.workload.seed, two.workload.model.head) == (7, "classification")
    assert (one.candidate.mode, one.candidate.world_size) == (Mode.GHOST, 2)


def test_a_suite_includes_built_in_ones_and_neighbours(tmp_path):
    written(tmp_path, COMPARISON, "neighbour.toml")
    suite = load(written(tmp_path, 'include = ["smoke", "neighbour.toml"]\n' + COMPARISON))
    smoke = [f"smoke/{comparison.name}" for comparison in load("smoke").comparisons]
    assert [comparison.name for comparison in suite.comparisons] == [*smoke, "neighbour/one", "one"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("comparison = 1", "own.toml: comparison must be a list"),
        ("defaults = 1" + COMPARISON, "own.toml: defaults must be a table"),
        ("x = 1" + COMPARISON, "own.toml: unknown key 'x'"),
        ("[[comparison]", "own.toml: Expected ']]'"),
        ("", "own.toml: comparisons: Tuple should have at least 1 item"),
        (COMPARISON + COMPARISON, "own.toml: two comparisons are named 'one'"),
        ("[[comparison]]\n", "own.toml: every comparison of a suite needs a name"),
        (COMPARISON + "[comparison.workload]\nsteps = 3", "comparison 'one': workload.steps: Extra inputs"),
        (COMPARISON + "oracle_steps = -1", "comparison 'one': oracle_steps: Input should be greater"),
        (COMPARISON.replace("ghost", "none"), "comparison 'one': mode none has no clipped gradients"),
        ('include = ["own.toml"]' + COMPARISON, "own.toml: include: own.toml includes itself"),
        ('include = ["other.toml"]' + COMPARISON, "no suite"),
        ("include = [1]" + COMPARISON, "include: 1 is not the name of a suite"),
    ],
)
def test_a_wrong_suite_names_file_comparison_and_field(tmp_path, text, complaint):
    path = written(tmp_path, text)
    with pytest.raises(SuiteError) as raised:
        load(path)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_lists_the_built_in_suites():
    with pytest.raises(SuiteError, match="no suite smok: built in are clipping, default, full, parity, "):
        load("smok")
