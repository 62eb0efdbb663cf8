"""Declares keys of the config: default, meaning, unit, source and allowed values.

A group of keys is a frozen dataclass, a key one field of it: `steps: int = key(300, "…")`. The
default config, the refusals, `--help` and docs/config.md all follow from these declarations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

T = TypeVar("T")

EXTRA_BODY = (
    "more fields of each request, such as {'max_completion_tokens': 2048} (in place of max_tokens) "
    "or {'temperature': None}: None takes a field out"
)
"""Meaning of the keys of that name."""


class Key(NamedTuple):
    """One key of a group of settings, with its value there."""

    name: str
    """Dotted, such as 'rl.steps'."""
    type: str
    value: object
    meaning: str
    unit: str
    paper: str
    """Section, equation, table or figure of the paper (arXiv 2603.03078); '' if it is ours."""
    choices: Mapping[str, str]
    """Allowed value -> its meaning, '' where the name says it; empty if any value is allowed."""
    several: bool
    """The value lists some of the choices, separated by commas."""
    at_least: float | None
    above: float | None
    at_most: float | None
    remedy: str
    """What to write instead of a value out of bounds; '' for the bound itself."""
    per_call: bool
    """Whether calls on one workdir may differ in it: it changes no result, up to rounding, or the
    files that it decides name its value. Otherwise it is part of the run's identity."""


def key(
    default: T,
    meaning: str,
    *,
    unit: str = "",
    paper: str = "",
    choices: Iterable[str] = (),
    several: bool = False,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    remedy: str = "",
    per_call: bool = False,
) -> T:
    """The declaration of one key: the field of a dataclass. `Key` explains the arguments.

    Choices of a tuple are those of each of its elements; a choice with a colon, such as
    'module:TASK', allows every value with one. A group with `PER_CALL = True` has only such keys.
    """
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "paper": paper,
        "choices": choices if isinstance(choices, Mapping) else dict.fromkeys(choices, ""),
        "several": several,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "remedy": remedy,
        "per_call": per_call,
    }
    # A factory, because a dataclass takes no mapping as a plain default.
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)


def fraction(default: float, meaning: str, *, paper: str = "") -> float:
    """A key whose value lies in [0, 1]."""
    remedy = "a probability lies in [0, 1]"
    return key(default, meaning, paper=paper, at_least=0, at_most=1, remedy=remedy)


def keys_of(group: object, prefix: str = "") -> dict[str, Key]:
    """All keys of a group of settings and of the groups within, by dotted name, as declared."""
    assert dataclasses.is_dataclass(group)
    found: dict[str, Key] = {}
    for field in dataclasses.fields(group):
        name, value = prefix + field.name, getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            found |= keys_of(value, f"{name}.")
        else:
            metadata = {**field.metadata}
            metadata["per_call"] |= getattr(group, "PER_CALL", False)
            found[name] = Key(name, str(field.type), value, **metadata)
    return found


def names(text: str) -> tuple[str, ...]:
    """The names in a value that lists them with commas, such as 'checkpoint,endpoint'."""
    return tuple(name for part in text.split(",") if (name := part.strip()))
