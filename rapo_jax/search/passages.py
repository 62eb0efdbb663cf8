"""Passages of a search, and their text as an observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Line = Callable[[int, str, str], str]
"""(number from 1, title or '', text) of a hit -> its text in an observation."""
Fits = Callable[[str], bool]
"""Whether a text fits into an observation."""


class Passage(NamedTuple):
    """One hit of a search; `title` may be ''."""

    title: str
    text: str


def passage_of(contents: str) -> Passage:
    """A passage in the layout of the wiki-18 corpus: its title in quotes, then its text."""
    title, _, text = contents.partition("\n")
    if not text.strip():
        return Passage("", title)
    return Passage(title.strip().removeprefix('"').removesuffix('"'), text.strip())


def numbered_line(number: int, title: str, text: str) -> str:
    """A hit on one line, `[1] title: text`."""
    parts = (" ".join(part.split()) for part in (title, text))
    return f"[{number}] {': '.join(part for part in parts if part)}"


def render_passages(passages: Sequence[Passage], fits: Fits, line: Line = numbered_line) -> str:
    """Numbered passages, one a line; those at the end that do not fit are left out.

    A first passage that does not fit is cut at a word, so that hits never give an empty text.
    """
    lines = [line(number, *passage) for number, passage in enumerate(passages, start=1)]
    while len(lines) > 1 and not fits("\n".join(lines)):
        lines.pop()
    text = "\n".join(lines)
    if fits(text):
        return text
    words = text.split(" ")
    low, high = 1, len(words)  # as many words as fit, by bisection; the first one in any case
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(" ".join(words[:middle])) else (low, middle)
    return " ".join(words[:low])
