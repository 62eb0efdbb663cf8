"""The arguments of a call of an MCP tool, made of the text that the policy wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rapo_jax.io.files import Json
from rapo_jax.text.protocol import neutralise

MAX_DEPTH = 100
"""Of arguments: the SDK writes 254 levels, and a server may read fewer than 200 and not answer."""


class ToolError(Exception):
    """A call that the tool refuses, with its reason."""


def arguments_of(text: str, schema: Mapping[str, Json]) -> dict[str, Json]:
    """The arguments of a call: a JSON object of them, or the text of the only (needed) one.

    Raises ToolError, with the form of the input, for any other text, or for one nested too deeply.
    """
    return {name: _sendable(value) for name, value in _arguments(text, schema).items()}


def _sendable(value: Json, depth: int = 1) -> Json:
    """A value without halves of a UTF-16 pair, which JSON may write and no message can hold."""
    if depth > MAX_DEPTH:
        raise ToolError(f"the input is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_sendable(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {str(_sendable(k)): _sendable(each, depth + 1) for k, each in value.items()}
    return value


def _arguments(text: str, schema: Mapping[str, Json]) -> dict[str, Json]:
    properties = schema.get("properties") or {}
    needed = schema.get("required") or []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and set(needed) <= set(value) <= set(properties):
        return value
    single = needed if len(needed) == 1 else list(properties)
    if not properties and not text.strip():
        return {}
    if len(single) != 1:
        raise ToolError(f"the input is {form(schema)}")
    wanted = properties.get(single[0])
    kind = wanted.get("type", "string") if isinstance(wanted, Mapping) else "string"
    is_text = "string" in ([kind] if isinstance(kind, str) else kind)
    return {single[0]: text if is_text or value is None else value}


def form(schema: Mapping[str, Json]) -> str:
    """What `arguments_of` takes, in words."""
    properties = schema.get("properties") or {}
    needed = schema.get("required") or []
    if not properties:
        return "none"
    if len(properties) == 1:
        return neutralise(str(next(iter(properties))))
    names = [
        f'"{name}": {each.get("type", "any") if isinstance(each, Mapping) else "any"}'
        + ("" if name in needed else " (optional)")
        for name, each in properties.items()
    ]
    return neutralise(f"a JSON object {{{', '.join(names)}}}")
