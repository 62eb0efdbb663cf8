"""Shared by the synthetic tasks: generated names, and parsing of the agents' steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rapo_jax.text.protocol import without_retrieved

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_LAST_RETRIEVED = re.compile(r"<retrieve>((?:(?!<retrieve>).)*?)</retrieve>\s*\Z", re.DOTALL)
_RESULT = re.compile(r"<result>((?:(?!<result>).)*?)</result>", re.DOTALL)
_THINK = re.compile(r"<think>\s*(\w+)\s*</think>")


def invent(rng: np.random.Generator, count: int, *, taken: Sequence[str]) -> list[str]:
    """Distinct lower-case words of 4 to 6 letters, none the beginning of another or of `taken`."""
    known = set(taken)
    prefixes = {word[:end] for word in known for end in range(1, len(word) + 1)}
    words: list[str] = []
    while len(words) < count:
        letters = []
        for place in range(int(rng.integers(4, 7))):
            letters.append(rng.choice(list(_VOWELS if place % 2 else _CONSONANTS)))
        word = "".join(letters)
        beginnings = {word[:end] for end in range(1, len(word) + 1)}
        if word not in prefixes and not beginnings & known:
            known.add(word)
            prefixes |= beginnings
            words.append(word)
    return words


def decision(text: str) -> str | None:
    """The decision of a step text: the word in its first thought, None if there is none."""
    thought = _THINK.search(text)
    return thought[1].strip() if thought else None


def retrieved_decision(history: str) -> str | None:
    """The decision of the retrieved trace that ends a history, None if no trace ends it."""
    trace = _LAST_RETRIEVED.search(history)
    return decision(trace[1]) if trace else None


def results(history: str) -> list[str]:
    """The texts of all results that are not part of a retrieved trace."""
    return _RESULT.findall(without_retrieved(history))


def is_number(value: str) -> bool:
    """Whether a present value is a number and not an entity."""
    return value.lstrip("-").isdigit()


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options, all equally likely; `rng.choice` on strings is ten times slower."""
    return options[int(rng.integers(len(options)))]
