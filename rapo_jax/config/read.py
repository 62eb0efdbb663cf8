"""The one reader of a config: a mapping becomes frozen settings, and every value is checked."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import TypeVar

from rapo_jax.config import Settings
from rapo_jax.config.keys import names
from rapo_jax.config.rules import MODEL_FOLDERS, check
from rapo_jax.io.hub import cached_folder, is_hub_name

T = TypeVar("T")


def read_settings(config: Mapping[str, object], *, files: bool = True) -> Settings:
    """Frozen, checked settings of a config, before anything is compiled.

    Names of the Hugging Face hub become the folders of its cache on this machine. `files`: see
    `check`.

    Raises:
        ValueError: names the key, its value and the remedy.
    """
    settings = _read_group(Settings, config, "")
    check(settings, files=files)
    return settings


def _read_group(group: type[T], values: Mapping[str, object], path: str) -> T:
    kinds = typing.get_type_hints(group)
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in kinds:
            near = difflib.get_close_matches(str(key), kinds, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(kinds)}"
            raise ValueError(f"{prefix}{key}: unknown config key{hint}")
    for key in kinds:
        if key not in values:
            remedy = "start your config from configs/default.py"
            raise ValueError(f"{prefix}{key}: missing config key; {remedy}")
    return group(**{key: _convert(kinds[key], values[key], prefix + key) for key in kinds})


def _convert(kind: object, value: object, path: str) -> object:
    """`value` as the annotation `kind` wants it: a group, a tuple, a mapping or a plain value."""
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}={value!r}: expected a group of keys")
        return _read_group(kind, value, path) if isinstance(kind, type) else dict(value)
    if typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)[0]
        nested = typing.get_origin(each) is tuple
        if (
            isinstance(value, str)
            or not isinstance(value, Iterable)
            or (nested and any(isinstance(x, str) for x in value))
        ):
            form = "(('a', 'b'),)" if nested else "('a', 'b')"
            raise ValueError(f"{path}={value!r}: expected a tuple such as {form}")
        return tuple(_convert(each, x, path) for x in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    assert isinstance(kind, type)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{path}={value!r}: expected {kind.__name__}")
    if path in MODEL_FOLDERS and any(map(is_hub_name, names(str(value)))):
        return ",".join(map(cached_folder, names(str(value))))
    return value
