"""Choosing a variant of the method by its name in a table of small functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

F = TypeVar("F")


def choose_variant(table: Mapping[str, F], *, key: str, name: str) -> F:
    """Returns `table[name]`.

    Raises:
      ValueError: no variant of that name; the message gives the key and the known names.
    """
    if name not in table:
        raise ValueError(f"{key}={name!r}: choose one of {', '.join(map(repr, table))}")
    return table[name]
