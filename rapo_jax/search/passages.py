"""Passages of a search, and their text as an observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Fits = Callable[[str], bool]
"""Whether an observation's text has room in the trajectory."""


class Passage(NamedTuple):
    """One hit of a search; `title` may be ''."""

    title: str
    text: str


def passage_of(contents: str) -> Passage:
    """A passage in the layout of the wiki-18 corpus: its title in quotes, then its text."""
    title, _, text = contents.partition("\n")
    return Passage(title.strip().strip('"'), text.strip()) if text.strip() else Passage("", title)


def render_passages(passages: Sequence[Passage], fits: Fits) -> str:
    """Numbered passages, one a line; those at the end that have no room are left out.

    A first passage that has no room is cut at a word, so that hits never give an empty observation.
    """
    lines = [f"[{number}] {_line(passage)}" for number, passage in enumerate(passages, start=1)]
    while len(lines) > 1 and not fits("\n".join(lines)):
        lines.pop()
    text = "\n".join(lines)
    if fits(text):
        return text
    words = text.split(" ")
    low, high = 1, len(words)  # as many words as have room, by bisection; the first one in any case
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(" ".join(words[:middle])) else (low, middle)
    return " ".join(words[:low])


def _line(passage: Passage) -> str:
    parts = (" ".join(part.split()) for part in passage)
    return ": ".join(part for part in parts if part)
