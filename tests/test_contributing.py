"""CONTRIBUTING.md: the files and registries that its recipes name exist, and its table counts the files correctly."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
TEXT = (TOP / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+)\n\n((?:(?!^##).*\n)+)", TEXT, re.M))
TABLE = re.findall(r"^\| ([^|]+?) \| (\d+) \| (\d+) \| (\d*) *\|$", TEXT, re.M)

PATH = re.compile(r"`((?:\.?\w[\w.-]*/)+[\w.-]*|[\w.-]+\.(?:md|toml|yaml))`")
STEP = re.compile(r"^\d\. (.+(?:\n   .+)*)", re.M)
CODE = re.compile(r"^(?:service|worker|migrations|flash_clipping/src)/.*\.(?:py|html)$")


def exists(path: str) -> bool:
    """Whether a path is there; of one with a placeholder, whether the folder above it is."""
    whole = Path(re.split(r"NAME|NNNN", path)[0].rpartition("/")[0] if re.search("NAME|NNNN", path) else path)
    return (TOP / whole).exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_file_of_a_recipe_exists(recipe: str) -> None:
    paths = PATH.findall(RECIPES[recipe])
    assert paths
    assert [path for path in paths if not exists(path)] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_its_registry_its_steps_and_its_tests(recipe: str) -> None:
    text = RECIPES[recipe]
    registry = re.match(r"Registry: (.+(?:\n.+)*)", text)
    assert registry
    assert "`" in registry[1]
    for name, path in re.findall(r"`([A-Za-z_]+)`(?:\s|[^`.])*? in\s+`([\w/]+\.py)`", registry[1]):
        assert re.search(rf"^(?:class |def |)({name})\b", (TOP / path).read_text(encoding="utf-8"), re.M), (name, path)
    assert STEP.findall(text)
    assert re.search(r"Tests:\s+.*`tests/", text)


def test_the_table_counts_the_files_of_the_recipes() -> None:
    assert TABLE
    for change, before, after, target in TABLE:
        steps = STEP.findall(RECIPES[change])
        files = {path for step in steps for path in PATH.findall(step)[:1] if CODE.match(path)}
        assert int(after) == len(files) == len(steps), change
        assert int(after) <= int(before), change
        assert not target or int(after) <= int(target), change
