"""Tool calls in the JSON of chat templates: Hermes and Qwen's form, and that of Llama 3.1-3.3."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from rapo_jax.text.protocol import INVALID, Step

PYTHON_TAG = "<|python_tag|>"
"""Llama writes it before a program in place of JSON, and before calls of a built-in search."""
_PARAMETERS = {"search": ("query", "what to look up"), "python": ("code", "a program that prints")}
_BUILT_IN_SEARCH = re.compile(r'brave_search\.call\(query="(.*)"\)', re.DOTALL)
_ENDS = re.compile(r"(?:<\|\w+\|>\s*)+\Z")
_BETWEEN = re.compile(r"[\s;,]*")


def _function(name: str, purpose: str) -> Mapping[str, object]:
    """A tool as chat templates list it: a function of one text."""
    parameter, meaning = _PARAMETERS[name]
    properties = {parameter: {"type": "string", "description": meaning}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    function = {"name": name, "description": purpose, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    _function("search", "Looks a fact up in Wikipedia."),
    _function("python", "Runs a Python program and returns what it prints."),
]


def hermes_calls(turn: str) -> list[Step]:
    """Every `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` behind the turn's thought.

    A call that is no JSON of a tool, or is not closed, is INVALID.
    """
    before, *calls = turn.rpartition("</think>")[2].split("<tool_call>")
    if not calls and "</tool_call>" in before:
        return [Step(INVALID, "")]
    return [_hermes_call(call) for call in calls]


def _hermes_call(call: str) -> Step:
    text, closed, _ = call.partition("</tool_call>")
    try:
        return _step(json.loads(text)) if closed else Step(INVALID, "")
    except (ValueError, RecursionError):
        return Step(INVALID, "")


def llama_calls(turn: str) -> list[Step]:
    """The calls `{"name": ..., "parameters": {...}}` that are all of a turn, perhaps several.

    A turn that begins with `<|python_tag|>` may be a program instead, or a call of the built-in
    search. Any other text calls nothing.
    """
    text = _ENDS.sub("", turn).strip()
    body = text.removeprefix(PYTHON_TAG).strip()
    if body.startswith("{") and '"name"' in body:
        return _json_calls(body)
    if not text.startswith(PYTHON_TAG):
        return []
    search = _BUILT_IN_SEARCH.fullmatch(body)
    return [Step("search", search[1]) if search else Step("python", body)]


def _json_calls(body: str) -> list[Step]:
    """JSON objects one after another; what follows the last whole one is INVALID."""
    calls: list[Step] = []
    at, decoder = 0, json.JSONDecoder()
    while at < len(body):
        try:
            call, at = decoder.raw_decode(body, at)
        except (ValueError, RecursionError):
            return [*calls, Step(INVALID, "")]
        calls.append(_step(call))
        between = _BETWEEN.match(body, at)
        at = between.end() if between else at
    return calls


def _step(call: object) -> Step:
    """A decoded call of one of `TOOLS`, else INVALID."""
    fields = call if isinstance(call, dict) else {}
    name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters"))
    if isinstance(name, str) and name in _PARAMETERS and isinstance(arguments, dict):
        content = arguments.get(_PARAMETERS[name][0])
        if isinstance(content, str):
            return Step(name, content)
    return Step(INVALID, "")
