"""Reads from a checkpoint's chat template how tool calls and observations are written.

The template is rendered once for a synthetic chat of one call and two observations; what it writes
around them is the protocol's, so that all the forms of Hermes, Qwen and Llama are one protocol.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rapo_jax.text.chat import rendered, split_control
from rapo_jax.text.protocol import Step
from rapo_jax.text.protocols import Protocol
from rapo_jax.text.tool_calls import hermes_calls, llama_calls

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

ASKED, QUERY = "the question asked", "the query made"
FIRST, SECOND = 'first "observation"', 'second "observation"'
END_OF_MESSAGE = "<|eom_id|>"
"""Ends a turn of Llama in which it called a tool; not all of its files name it."""


def with_turns(
    protocol: Protocol,
    tokenizer: PreTrainedTokenizerFast,
    exact: Tokenizer,
    *,
    ends: Sequence[str],
    arguments: Mapping[str, object],
    key: str,
) -> Protocol:
    """The protocol with the texts and the calls of a tokenizer's chat template.

    `ends` are the tokenizer's texts that end a turn; the policy writes them, so that they are no
    part of the observations.

    Raises:
        ValueError: the template writes no tool calls, or in another form; names `key`.
    """
    call = {"name": "search", "arguments": {"query": QUERY}}
    messages: list[Mapping[str, object]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": ASKED},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "name": "search", "content": FIRST},
        {"role": "tool", "name": "search", "content": SECOND},
    ]
    given = {**arguments, **protocol.template_arguments}
    chat = rendered(tokenizer, messages, arguments=given, key=key).rpartition(ASKED)[2]
    escapes = json.dumps(FIRST)[1:-1] in chat
    first, second = (_escaped(text) if escapes else text for text in (FIRST, SECOND))
    made, _, rest = chat.partition(first)
    between, shown, after = rest.partition(second)
    turn, end, before = _at_end(made, ends)
    pieces = [piece for piece in split_control(exact, turn) if isinstance(piece, str)]
    spoken = next((piece for piece in pieces if QUERY in piece), "")
    wanted = [Step("search", QUERY)]
    forms = [(hermes_calls, turn, ends), (llama_calls, spoken, (*ends, END_OF_MESSAGE))]
    for parse, text, stops in forms:
        if shown and end and parse(text) == wanted:
            return dataclasses.replace(
                protocol,
                stops=tuple(dict.fromkeys(stops)),
                parse=parse,
                before=before,
                between=between,
                after=after,
                escape=_escaped if escapes else str,
            )
    raise ValueError(
        f"protocol={protocol.name!r}: the chat template of {key} writes no tool calls in the JSON "
        "of Hermes and Qwen (<tool_call>) or of Llama 3.1; use a checkpoint whose template does"
    )


def _escaped(text: str) -> str:
    """The inside of a JSON string.

    Without backspaces and form feeds: JSON writes them with a backslash and a letter, and "oxed{5}"
    after a backspace would become a box.
    """
    return json.dumps(text.replace("\b", " ").replace("\f", " "), ensure_ascii=False)[1:-1]


def _at_end(made: str, ends: Sequence[str]) -> tuple[str, str, str]:
    """What precedes the end of the turn with the call, that end, and what follows it."""
    called, query, rest = made.partition(QUERY)
    end = min((text for text in ends if text in rest), key=rest.find, default="")
    call, _, before = rest.partition(end) if end else (rest, "", "")
    return called + query + call, end, before
