"""The second prompt of Search-o1: the model reads the documents of a search for its reasoning.

What follows the marker in its output is the observation (arXiv 2501.05366, reason-in-documents).
The wording is ours; no checkpoint was trained with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from rapo_jax.text.tokens import Tokens

RowCall = tuple[int, int]
"""A search whose documents are condensed: the number of its row, as in `Sampler.sample`, and how
many of the row came before it."""
Condense = Callable[[Mapping[RowCall, str]], list[str]]
"""Prompts of `condensing_prompt` -> the model's output for each, in their order."""

NOTHING_HELPFUL = "No helpful information found."
_MARKER = re.compile(r"\*{0,2}final information\*{0,2}:?", re.IGNORECASE)
_LAST_STEPS = 4
_PROMPT = (
    "You help to answer a question that is being reasoned about. A search was made for it; read "
    "what it returned, and take from it what the reasoning needs next.\n"
    "- Use only facts that the documents state and that help with the search query.\n"
    "- End with the line **Final Information**, and below it these facts in a few sentences that "
    "the reasoning can continue from.\n"
    f"- If no document helps, write **Final Information** and below it: {NOTHING_HELPFUL}\n\n"
    "Reasoning so far:\n{reasoning}\n\nSearch query:\n{query}\n\nDocuments:\n{documents}\n"
)


def condensing_prompt(
    tokens: Tokens, history: str, query: str, documents: str, *, room: int
) -> tuple[str, bool]:
    """A question for the model of at most `room` tokens, and whether the documents were truncated.

    The reasoning has up to half of these tokens and keeps its end; documents keep their beginning.
    """

    def filled(reasoning: str, query: str, documents: str) -> str:
        return _PROMPT.format(reasoning=reasoning, query=query, documents=documents)

    free = room - len(tokens.prompt_ids("", filled("", "", "")))
    asked = tokens.decode(tokens.encode(query)[: max(free // 4, 0)])
    free -= len(tokens.encode(asked))
    past = tokens.encode(shortened(history))
    reasoning = tokens.decode(past[max(len(past) - free // 2, 0) :])
    read = tokens.encode(documents)
    count = max(free - len(tokens.encode(reasoning)), 0)
    prompt, cut = filled(reasoning, asked, documents), len(read) > count
    while cut or len(tokens.prompt_ids("", prompt)) > room:
        # text that is cut may be written in more tokens than it had
        prompt, cut = filled(reasoning, asked, tokens.decode(read[:count])), True
        if len(tokens.prompt_ids("", prompt)) <= room or not count:
            break
        count = count * 7 // 8
    return prompt, cut


def shortened(history: str) -> str:
    """The lines of a reasoning: its first, its last, and those of searches; dots for others."""
    lines = [line for line in history.split("\n") if line.strip()]
    kept: list[str] = []
    for number, line in enumerate(lines):
        if number == 0 or number >= len(lines) - _LAST_STEPS or "_search_" in line:
            kept.append(line)
        elif kept[-1] != "...":
            kept.append("...")
    return "\n".join(kept)


def final_information(output: str) -> str:
    """What follows the last marker of a model's output; without one, that nothing helps."""
    before, *after = _MARKER.split(output)
    return (after[-1].strip() if after else "") or NOTHING_HELPFUL
