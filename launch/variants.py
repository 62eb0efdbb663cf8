"""The runs of a sweep: combinations of settings, and their names."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

LONGEST_NAME = 180
"""Bytes of a folder's name before its digest; file systems allow 255, with .log behind it."""


def split(text: str) -> list[str]:
    """The parts of `text` between commas outside brackets and quotes.

    A quote within a word, as in don't, is an apostrophe. ValueError where something stays open.
    """
    parts, depth, quote, before = [""], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not before.isalnum():
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
        before = character
    if depth or quote:
        raise ValueError(f"{text!r}: a quote or a bracket is opened or closed alone")
    return [part.strip() for part in parts]


def setting(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as a pair."""
    key, equals, value = text.partition("=")
    key = key.strip().removeprefix("--").removeprefix("config.")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        raise ValueError(f"{text!r} is not KEY=VALUE, such as rl.m=0.1")
    return key, value.strip()


def plan(sweeps: Sequence[str], variants: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings of each run by its name: a variant (slowest) with a value of each swept key."""
    axes = [(key, split(values)) for key, values in map(setting, sweeps)]
    explicit = [_once(map(setting, split(variant))) for variant in variants] or [{}]
    swept = [key for key, _ in axes]
    for key in swept:
        if swept.count(key) > 1 or any(key in variant for variant in explicit):
            raise ValueError(f"{key} is given twice: name each key in one --sweep or in --run")
    runs: dict[str, dict[str, str]] = {}
    for variant in explicit:
        for values in itertools.product(*(values for _, values in axes)):
            settings = variant | dict(zip(swept, values, strict=True))
            name = name_of(settings)
            if name in runs or name == "shared":
                raise ValueError(f"two runs would be called {name!r}; remove the repeated value")
            runs[name] = settings
    return runs


def _once(settings: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The settings of one run; a key that is there twice would silently be the last one."""
    found: dict[str, str] = {}
    for key, value in settings:
        if key in found:
            raise ValueError(f"{key} is given twice in one --run; each run has a --run of its own")
        found[key] = value
    return found


def name_of(settings: dict[str, str]) -> str:
    """A folder's name: the method, then the other settings, then the seed."""
    order = sorted(settings, key=lambda key: (key != "method", key == "seed"))
    parts = [settings[key] if key == "method" else f"{key}={settings[key]}" for key in order]
    text = "_".join(parts)
    name = re.sub(r"[^\w.=+-]+", "-", text) or "run"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}"
