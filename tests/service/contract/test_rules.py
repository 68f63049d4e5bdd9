"""Rules: who and what fits."""

import pytest
from pydantic import ValidationError

from service.contract import Rules, Target, entries_of
from service.settings import Settings
from service.suites import SuiteError, load

ONE = {"branches": ["main", "release/*"], "suites": ["smoke"]}


def rule(**changes):
    return Rules.model_validate({"repository": "a/b", "rule": [ONE | changes]}).rules[0]


def test_branches_are_whole_names() -> None:
    assert [rule().has_branch(name) for name in ("main", "release/1.6", "topic/main", "main2")] == [
        True,
        True,
        False,
        False,
    ]


def test_paths_read_as_in_gitignore() -> None:
    some = rule(paths=["opacus/grad_sample/**", "!*.md"])
    assert some.has_path(("README.md", "opacus/grad_sample/deep/linear.py"))
    assert not some.has_path(("opacus/other.py", "opacus/grad_sample/notes.md"))
    assert not some.has_path(())
    assert some.has_path(None)
    assert rule().has_path(("anything",))


@pytest.mark.parametrize(
    "document",
    [
        {"repository": "a/b"},
        {"repository": "b", "rule": [ONE]},
        {"repository": "a/b", "rule": [ONE | {"suites": []}]},
        {"repository": "a/b", "rule": [ONE | {"pull_requests": "forks"}]},
        {"repository": "a/b", "rule": [ONE], "trusted": ["me"]},
    ],
)
def test_rules_that_say_something_else_are_refused(document) -> None:
    with pytest.raises(ValidationError):
        Rules.model_validate(document)


@pytest.mark.parametrize("branch", ["-x", "a b", "a:b", "", "a\x00", "a..b*"])
def test_a_branch_that_git_would_not_have_is_refused(branch) -> None:
    with pytest.raises(ValidationError):
        Target(repository="a/b", branch=branch, sha="0" * 40)


def test_an_arm_that_names_an_opacus_keeps_it() -> None:
    suite = load("smoke")
    first = suite.comparisons[0]
    pinned = first.model_copy(update={"reference": first.reference.model_copy(update={"opacus": "version:1.5.4"})})
    entries = entries_of(suite.model_copy(update={"comparisons": (pinned,)}), "a" * 40)
    assert [(name, entry.name) for name, entry in entries] == [("hooks, ghost", "smoke/hooks, ghost")]
    assert (entries[0][1].reference.opacus, entries[0][1].candidate.opacus) == ("version:1.5.4", "commit:" + "a" * 40)


def test_the_examples_of_the_documentation_can_be_read() -> None:
    from pathlib import Path

    from service.checks.rules_file import read_rules, read_suite

    settings = Settings(rules=Path(__file__).parents[3] / "docs" / "examples" / "rules.toml")
    rules = read_rules(settings)
    assert rules is not None
    names = [name for one in rules.rules for name in one.suites]
    assert [read_suite(settings, name).name for name in names] == ["smoke", "quick"]
    assert read_suite(settings, "quick").name == "quick"
    for name in ("nope", "../rules.toml", "/etc/passwd"):
        with pytest.raises(SuiteError):
            read_suite(settings, name)
