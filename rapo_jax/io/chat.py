"""Chat completions in OpenAI's format: fields of a request, and what a reply holds or lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rapo_jax.io.files import Json
from rapo_jax.io.http import BUSY, HttpFailure

HOPELESS = (401, 402, 403, 404, 405)
"""Statuses that every call would get: the endpoint is set up wrongly, or unpaid. (400 may be a
conversation that has become too long.)"""
MAX_REPLY_BYTES = 8 << 20
REASONING = ("reasoning_content", "reasoning")
"""Keys under which servers return a thought that they cut out of the message."""


class ChatReply(NamedTuple):
    """A message of the model. `text` is blank only where its limit cut it off in a thought."""

    text: str
    thought: str
    """What the server cut out of the text; '' if nothing."""
    ended: bool
    """The model ended it, not the limit of tokens."""


def with_extra(body: Mapping[str, Json], extra: Mapping[str, object]) -> dict[str, Json]:
    """`body` with the fields of `extra`; None removes a field, max_completion_tokens replaces
    max_tokens."""
    merged: dict[str, Json] = {**body, **extra}
    if merged.get("max_completion_tokens") is not None and "max_tokens" not in extra:
        del merged["max_tokens"]
    return {name: value for name, value in merged.items() if value is not None}


def read_reply(reply: Json) -> ChatReply:
    """The message in a reply of status 200.

    Raises HttpFailure, with the server's reason, if there is none: an error in its place, a refusal
    (`refused`), or a message without content (`empty`).
    """
    answer = _mapping(reply)
    choices = answer.get("choices")
    choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
    for holder in (answer, choice):
        if error := holder.get("error"):
            raise _reported(error)
    if answer.get("object") == "error":
        raise _reported(answer)
    message = _mapping(choice.get("message"))
    reason = choice.get("finish_reason")
    if message.get("refusal") or reason == "content_filter":
        why = message.get("refusal") or "the content filter ended it"
        raise HttpFailure("refused", f"the model refuses: {why}", retry=False)
    text, thought = _parts(message.get("content"))
    other = next((x for name in REASONING if (x := message.get(name))), "")
    thought = thought or (other if isinstance(other, str) else "")
    ended = reason != "length"
    if not text.strip() and (ended or not thought.strip()):
        raise HttpFailure("empty", f"the answer holds no message{_why_empty(message, reason)}")
    return ChatReply(text, thought.strip(), ended)


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _reported(error: Json) -> HttpFailure:
    """The failure that an error inside a reply describes; some contain an HTTP status."""
    fields = _mapping(error)
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 0
    text = fields.get("message") or error
    return HttpFailure(
        "status",
        f"the answer holds an error: {text}{f' (code {code})' if code is not None else ''}",
        status=status,
        retry=status in BUSY or not 400 <= status < 500,
    )


def _parts(content: Json) -> tuple[str, str]:
    """(text, thought) of a content, which may be a list of typed parts."""
    if isinstance(content, str):
        return content, ""
    text = thought = ""
    for part in content if isinstance(content, list) else []:
        fields = _mapping(part)
        piece = part if isinstance(part, str) else fields.get("text")
        text += piece if isinstance(piece, str) else ""
        thought += _parts(fields.get("thinking"))[0]
    return text, thought


def _why_empty(message: Mapping[str, Json], reason: Json) -> str:
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        names = [str(_mapping(_mapping(call).get("function")).get("name")) for call in calls]
        return (
            f" but calls of functions ({', '.join(names)}); the tags are text: have it parse none"
        )
    return f" (finish_reason {reason})" if isinstance(reason, str) and reason != "stop" else ""
