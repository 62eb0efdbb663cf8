"""The text that is embedded as the key of a step trace: the state before it (paper 4.1.1)."""

from __future__ import annotations

import re


def key_text(question: str, history: str, *, mask: str, max_chars: int) -> str:
    """Text of S_<t = question + history, cut to `max_chars` characters.

    `mask` is a regular expression whose matches become '#', so that names and numbers of one
    question do not outweigh the solution steps; '' masks nothing. Masking comes before the cut, so
    a name cut in two is still masked. A longer text keeps the whole question and the end of the
    history (docs/method.md, Decisions); a longer question keeps its beginning.
    """
    if mask:
        question, history = re.sub(mask, "#", question), re.sub(mask, "#", history)
    if not history:
        return question[:max_chars]
    room = max_chars - len(question) - 1
    if room <= 0:
        return question[:max_chars]
    return f"{question}\n{history[-room:]}"
