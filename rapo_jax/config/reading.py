"""Frozen settings of a config mapping; unknown keys and wrong types are refused by name."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any


def _convert(kind: Any, value: Any, path: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return read_group(kind, value, path)
    if typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)[0]
        single = isinstance(value, str) or not hasattr(value, "__iter__")
        nested = typing.get_origin(each) is tuple
        if single or (nested and any(isinstance(x, str) for x in value)):
            form = "(('a', 'b'),)" if nested else "('a', 'b')"
            raise ValueError(f"{path}={value!r}: expected a tuple such as {form}")
        return tuple(_convert(each, x, path) for x in value)
    if typing.get_origin(kind) is Mapping and isinstance(value, Mapping):
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{path}={value!r}: expected {kind.__name__}")
    return value


def read_group(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}={values!r}: expected a group of keys")
    kinds = typing.get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in kinds:
            near = difflib.get_close_matches(str(key), kinds, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(kinds)}"
            raise ValueError(f"{prefix}{key}: unknown config key{hint}")
    missing = [key for key in kinds if key not in values]
    if missing:
        raise ValueError(
            f"{prefix}{missing[0]}: missing config key; start your config from configs/default.py"
        )
    return cls(**{key: _convert(kinds[key], values[key], prefix + key) for key in kinds})
