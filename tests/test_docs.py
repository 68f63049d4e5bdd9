"""The Markdown files: every link, anchor, path, command and target that they name exists."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from click import Context

from service.cli import cli

TOP = Path(__file__).parents[1]
# A path in a page may be relative to the page or to one of these.
ROOTS = ("", "docs/", "flash_clipping/", "flash_clipping/src/")

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)
FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
INDENTED = re.compile(r"^ {4,}(.+)$", re.M)
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:py|toml|md|ya?ml|html|css|js|Dockerfile)")
# Not `kubectl -n clipwatch …` and not `kubectl create namespace clipwatch`.
COMMAND = re.compile(r"(?<![-/\w])(?<!-n )(?<!namespace )clipwatch ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?")
# In commands: `pytest tests/…` and `python -m tests.…`, relative to the top folder.
ARGUMENT = re.compile(r"(?<![\w./=-])(?:docs|docker|k8s|migrations|service|tests|worker)(?:/[\w.-]+)+")
MODULE = re.compile(r"-m ((?:tests|worker|service|flash_clipping)(?:\.\w+)+)")
ROOM = re.compile(r"\bROOM=([\w./]+)")
PLACEHOLDER = re.compile(r"NAME|NNNN")
TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")


@cache
def names() -> frozenset[str]:
    """The files of the checkout, without what git ignores."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(listed, cwd=TOP, capture_output=True, text=True, check=True).stdout
    return frozenset(name for name in output.split("\0") if name and (TOP / name).is_file())


def pages() -> list[str]:
    found = sorted(name for name in names() if name.endswith(".md"))
    assert "README.md" in found
    return found


@cache
def text_of(name: str) -> str:
    return (TOP / name).read_text(encoding="utf-8")


@cache
def prose(page: str) -> str:
    return FENCE.sub("", text_of(page))


def code(page: str) -> Iterator[str]:
    """What a page shows as code: fenced, indented, or in backticks."""
    yield from (match.group(0) for match in FENCE.finditer(text_of(page)))
    yield from INDENTED.findall(prose(page))
    yield from CODE.findall(prose(page))


@cache
def anchors(page: str) -> frozenset[str]:
    """The anchors that GitHub makes of the headings of a page. The second of two equal headings ends in -1."""
    found: list[str] = []
    for heading in HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{anchor}-{times}" if (times := found.count(anchor)) else anchor)
    return frozenset(found)


@cache
def commands() -> dict[str, set[str]]:
    """The commands of `clipwatch`, each with the subcommands that its module declares."""
    found: dict[str, set[str]] = {name: set() for name in cli.list_commands(Context(cli))}
    modules = (name for name in sorted(names()) if re.match(r"(service|worker)/commands/\w+\.py$", name))
    for name in (module for module in modules if "@click.group" in text_of(module)):
        functions = [node for node in ast.walk(ast.parse(text_of(name))) if isinstance(node, ast.FunctionDef)]
        for name_of_function, decorator in ((node.name, one) for node in functions for one in node.decorator_list):
            match decorator:
                case ast.Call(func=ast.Attribute(ast.Name(group), "command")) if group != "click":
                    given = [*decorator.args, *(k.value for k in decorator.keywords if k.arg == "name")]
                    found[group].add(ast.literal_eval(given[0]) if given else name_of_function)
    assert found["token"] >= {"create", "list", "revoke"}
    return found


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = []
    for page in pages():
        for link in LINK.findall(CODE.sub("", prose(page))):
            path, _, anchor = unquote(link).partition("#")
            target = (TOP / page).parent / path if path else TOP / page
            if re.match(r"[a-z]+:", link):
                continue
            if not target.exists() or (anchor and anchor not in anchors(str(target.resolve().relative_to(TOP)))):
                broken.append(f"{page}: {link}")
    assert not broken


def test_every_path_in_backticks_exists() -> None:
    broken = []
    for page in pages():
        for path in (code.partition("::")[0] for code in CODE.findall(prose(page))):
            if PLACEHOLDER.search(path) or not PATH.fullmatch(path) or not ("/" in path or path.startswith("test_")):
                continue
            candidates = (f"{Path(page).parent}/", *ROOTS)
            somewhere = path.startswith("test_") and any(name.endswith(f"/{path}") for name in names())
            if not somewhere and not any((TOP / root / path).exists() for root in candidates):
                broken.append(f"{page}: {path}")
    assert not broken


def test_every_path_and_module_in_a_command_exists() -> None:
    broken = []
    for page in pages():
        for part in code(page):
            made = re.findall(r"--(?:output|markdown)[ =](\S+)", part)
            named = set(ARGUMENT.findall(part)) | {f"tests/{room}" for room in ROOM.findall(part)}
            for path in named - set(made):
                if (
                    not PLACEHOLDER.search(path)
                    and not (TOP / path.rstrip(".")).exists()
                    and not re.search(r"\.{3}|…", path)
                ):
                    broken.append(f"{page}: {path}")
            for module in MODULE.findall(part):
                path = TOP / module.replace(".", "/")
                if not (path.is_dir() or path.with_suffix(".py").exists()):
                    broken.append(f"{page}: {module}")
    assert not broken


def test_every_test_that_a_page_names_exists() -> None:
    sources = " ".join(text_of(name) for name in names() if re.match(r"tests/.*\.py$", name))
    defined = set(re.findall(r"def (test_\w+)", sources))
    named = {(page, name) for page in pages() for name in re.findall(r"`(test_\w+)`", prose(page))}
    assert sorted(f"{page}: {name}" for page, name in named if name not in defined) == []


def test_every_command_exists() -> None:
    broken = []
    for page in pages():
        for command, second in (found for snippet in code(page) for found in COMMAND.findall(snippet)):
            known = commands().get(command)
            if known is None or (known and second and second not in known):
                broken.append(f"{page}: clipwatch {command} {second}")
    assert not broken


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text_of("Makefile"), re.M))
    broken = [
        f"{page}: make {name}"
        for page in pages()
        for part in code(page)
        for name in TARGET.findall(part)
        if name not in targets
    ]
    assert not broken


@pytest.mark.parametrize("folder", ["docs", "docs/decisions"])
def test_every_page_is_in_the_index_of_its_folder(folder: str) -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(text_of(f"{folder}/README.md"))}
    below = {page.removeprefix(f"{folder}/") for page in pages() if page.startswith(f"{folder}/")} - {"README.md"}
    if folder == "docs":
        below = {page for page in below if not re.match(r"decisions/\d", page)}
    assert below
    assert below <= linked


def test_every_name_of_the_glossary_is_in_its_file() -> None:
    entries = re.findall(r"`([A-Z][\w.]*)` in `([\w/]+\.py)`", text_of("docs/glossary.md"))
    assert entries
    broken = [f"{name} in {path}" for name, path in entries if name.rpartition(".")[2] not in text_of(path)]
    assert not broken


def test_decisions_have_numbers_of_their_own_and_one_form() -> None:
    records = sorted(Path(page).name for page in pages() if re.match(r"docs/decisions/\d{4}-", page))
    assert len({record[:4] for record in records}) == len(records)
    for record in records:
        text = text_of(f"docs/decisions/{record}")
        assert re.match(rf"# {int(record[:4])}\. \S", text), record
        assert re.findall(r"^## (.+)$", text, re.M) == ["Context", "Decision", "Consequences"], record
        assert re.search(r"^\* Status: \w.*\n\* Date: \d{4}-\d\d-\d\d$", text, re.M), record
