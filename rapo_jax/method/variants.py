"""Variants of the method: a table of small functions, chosen by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

F = TypeVar("F")


def choose_variant(table: Mapping[str, F], *, key: str, name: str) -> F:
    """`table[name]`. Raises ValueError with the key and the known names if there is none."""
    if name not in table:
        raise ValueError(f"{key}={name!r}: choose one of {', '.join(map(repr, table))}")
    return table[name]
