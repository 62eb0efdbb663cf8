"""Chat messages with tool calls as the text of our protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rapo_jax.scoring.answers import last_boxed
from rapo_jax.text.protocol import neutralise, opened_thought, render_result, tags

QUERY_NAMES = ("query", "q", "queries", "query_list", "search_query")
PROGRAM_NAMES = ("code", "program", "script", "source")
SHORT_ANSWER_CHARS = 200
"""A last message up to this long and of one line is itself the answer, and is boxed."""

Message = Mapping[str, Any]


class Call(NamedTuple):
    """A tool call of a message: the tag of the tool, and the text inside it."""

    id: str | int | None
    tag: str
    text: str


def tagged_text(messages: Sequence[object], user_tools: tuple[str, ...] = ()) -> tuple[str, str]:
    """(question, response with protocol tags) of one chat in the OpenAI format.

    The question is the user's message; a system message is left out, because ours replaces it. An
    assistant's message becomes a thought and its call, the tool's message the result; several calls
    of one message become several steps; a message without calls is the answer. Contents that
    already hold protocol tags keep them: a thought that is only closed is opened, and plain text
    behind the last one is the answer. Names in `user_tools` are tools too.

    Raises:
        ValueError: several user turns, an unknown tool, a call without a result, or a result
            without a call.
    """
    turns = [_message(message) for message in messages]
    while turns and turns[0]["role"] in ("system", "developer"):
        turns = turns[1:]
    if not turns or turns[0]["role"] != "user":
        raise ValueError("messages do not begin with a user's question")
    question, *turns = turns
    response: list[str] = []
    while turns:
        message = turns[0]
        if message["role"] != "assistant":
            raise ValueError(f"messages: a {message['role']} message where the assistant's was due")
        calls = _calls(message, user_tools)
        results = _results(calls, turns[1 : 1 + len(calls)])
        response.append(_thought(message, user_tools, is_answer=not calls))
        for call, result in zip(calls, results, strict=True):
            text = neutralise(call.text, user_tools)
            response.append(f"<{call.tag}>{text}</{call.tag}>{render_result(result, user_tools)}")
        turns = turns[1 + len(calls) :]
    if not response:
        raise ValueError("messages hold no answer of an assistant")
    return _content(question), "".join(response)


def _message(message: object) -> Message:
    """The message in the present format; `function_call` and the role `function` are older."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError("messages hold an item that is no message with a role")
    present = dict(message)
    if present["role"] == "function":
        present["role"] = "tool"
    if present.get("function_call") and not present.get("tool_calls"):
        present["tool_calls"] = [{"function": present["function_call"]}]
    return present


def _content(message: Message) -> str:
    """The text of a message, whose parts may come as a list."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise ValueError(f"messages: content of the {message['role']} is no text")
    return content


def _thought(message: Message, user_tools: tuple[str, ...], *, is_answer: bool) -> str:
    """The assistant's thought, or thought and answer, with tags."""
    content = _content(message).strip()
    thought = message.get("reasoning_content") or ""
    if not isinstance(thought, str):
        raise ValueError("messages: reasoning_content is no text")
    if any(tag in content for tag in tags(user_tools)):
        content = opened_thought(content)
        return (f"<think>{neutralise(thought.strip(), user_tools)}</think>" if thought else "") + (
            answered(content, user_tools) if is_answer else content
        )
    thought, content = neutralise(thought.strip(), user_tools), neutralise(content, user_tools)
    if not is_answer:
        return f"<think>{' '.join(filter(None, [thought, content]))}</think>"
    if not content:
        raise ValueError("messages: a message of the assistant is empty")
    return f"<think>{thought}</think>{_answer(content)}"


def answered(text: str, user_tools: tuple[str, ...]) -> str:
    """A last message whose plain text behind its thought is put into answer tags, if it has any."""
    thought, closing, content = text.rpartition("</think>")
    content = content.strip()
    if not closing or not content or any(tag in content for tag in tags(user_tools)):
        return text
    return f"{thought}{closing}{_answer(content)}"


def _answer(content: str) -> str:
    short = len(content) <= SHORT_ANSWER_CHARS and "\n" not in content
    boxed = short and last_boxed(content) is None
    return "<answer>" + (f"\\boxed{{{content}}}" if boxed else content) + "</answer>"


def _calls(message: Message, user_tools: tuple[str, ...]) -> list[Call]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError("messages: tool_calls is no list")
    return [_call(call, user_tools) for call in calls]


def _call(call: object, user_tools: tuple[str, ...]) -> Call:
    call = call if isinstance(call, Mapping) else {}
    function = call.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise ValueError("messages: a tool call without a function's name")
    tag = name if name in user_tools else _tag(name)
    text = _argument(function.get("arguments"), QUERY_NAMES if tag == "search" else PROGRAM_NAMES)
    if text is None:
        raise ValueError(f"messages: the call of {name!r} has no text among its arguments")
    return Call(_id(call.get("id")), tag, text)


def _id(value: object) -> str | int | None:
    """An id by which results are matched; of other types there are none."""
    return value if isinstance(value, str | int) else None


def _argument(arguments: object, names: Sequence[str]) -> str | None:
    """The query or program among a call's arguments; None if it is not clear which it is."""
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            read = None
        # Some servers give the bare query or program, which may look like a number or a list.
        arguments = read if isinstance(read, Mapping | str) else arguments
    if isinstance(arguments, Mapping):
        texts = [value for value in arguments.values() if isinstance(value, str)]
        known = [arguments[name] for name in names if name in arguments]
        arguments = known[0] if known else texts[0] if len(texts) == 1 else None
    if isinstance(arguments, list) and len(arguments) == 1:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else None


def _tag(name: str) -> str:
    lowered = name.lower()
    if any(word in lowered for word in ("python", "code", "interpreter")):
        return "python"
    if any(word in lowered for word in ("search", "wiki", "retriev")):
        return "search"
    raise ValueError(f"messages: tool {name!r} is no search and no python interpreter")


def _results(calls: Sequence[Call], messages: Sequence[Message]) -> list[str]:
    """The results in the order of their calls; matched by id where there are ids."""
    if len(messages) < len(calls) or any(message["role"] != "tool" for message in messages):
        raise ValueError("messages: a tool call without its result")
    by_id = {_id(message.get("tool_call_id")): message for message in messages}
    ids = [call.id for call in calls]
    if None in ids or None in by_id or len(by_id) < len(messages):
        return [_content(message) for message in messages]
    if set(ids) != set(by_id):
        raise ValueError("messages: the ids of tool calls and results do not agree")
    return [_content(by_id[call_id]) for call_id in ids]
