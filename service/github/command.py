"""Finds the command `/clipwatch run SHA` in the Markdown of a comment."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

COMMAND = "/clipwatch run"
FULL = re.compile(rf"{COMMAND} ([0-9a-f]{{40}})")
BREAKS = ("softbreak", "hardbreak")
HTML = ("html_block", "html_inline")


@dataclass(frozen=True)
class Command:
    """The commit that a comment names, or None and in words why it names none."""

    sha: str | None
    outcome: str = ""


def approved_sha(body: str) -> Command:
    """The commit that a comment asks to run.

    The command must be all the text of a line of a paragraph. A line of a quotation, of a list or of a code block, a
    line with more text, and a comment that contains HTML do not count: none of them is surely the writer's own request.
    """
    outcome = "no command in the comment"
    if COMMAND not in body:
        return Command(None, outcome)
    try:
        lines = list(_lines(MarkdownIt("commonmark").parse(body)))
    except ValueError as error:
        return Command(None, f"no command in the comment: {error}")
    for line in lines:
        found = FULL.fullmatch(line)
        if found:
            return Command(found[1])
        if line.startswith(COMMAND):
            outcome = f"{COMMAND} needs all 40 digits of the commit and nothing else on its line"
    return Command(None, outcome)


def _lines(blocks: Sequence[Token]) -> Iterator[str]:
    """Lines of the paragraphs that stand in no other block, those without any formatting."""
    contents = [part for block in blocks for part in (block, *(block.children or ()))]
    if any(part.type in HTML for part in contents):
        raise ValueError("it contains HTML")
    for before, block in pairwise(blocks):
        if before.type == "paragraph_open" and before.level == 0:
            for is_break, parts in groupby(block.children or (), lambda part: part.type in BREAKS):
                line = list(parts)
                if not is_break and all(part.type == "text" and part.level == 0 for part in line):
                    yield "".join(part.content for part in line).strip(" \t")
