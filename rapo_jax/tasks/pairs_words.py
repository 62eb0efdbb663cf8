"""What the words of the pairs task denote: procedures of two decisions, and wrong habits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from rapo_jax.tasks.chains import OPERATIONS

RELATIONS = ("mentor", "rival", "friend", "heir")
COMMUTING = ("friend", "rival")
"""Relations that lead to the same entity in either order."""
ATTRIBUTES = ("age", "size")
PROCEDURE = 2
"""Decisions of a word."""

Procedure = tuple[str, ...]


def make_procedures(
    rng: np.random.Generator, groups: Mapping[str, str], number: int
) -> dict[str, Procedure]:
    """Distinct procedures; the last `number` words of known and of mastered end in a number.

    Look-ups come in blocks in which each relation is once the first and once the second, so that no
    relation is the answer at a place for most blind or most mastered words.
    """
    firsts, seconds = rng.permutation(RELATIONS).tolist(), rng.permutation(RELATIONS).tolist()
    turns = range(len(RELATIONS))
    blocks: list[list[Procedure]] = [
        list(zip(firsts, seconds[turn:] + seconds[:turn], strict=True)) for turn in turns
    ]
    free: list[list[Procedure]] = [
        [hop for hop in block if set(hop) != set(COMMUTING)] for block in blocks
    ]
    free.sort(key=len, reverse=True)
    hops = [hop for block in free for hop in block]
    computed: list[Procedure] = list(itertools.product(ATTRIBUTES, OPERATIONS))
    numbers = iter([computed[i] for i in rng.permutation(len(computed))])
    looked_up = {"blind": iter(hops), "known": iter([COMMUTING, *reversed(hops)])}
    looked_up["mastered"] = looked_up["blind"]
    procedures = {}
    for group in ("blind", "mastered", "known"):
        words = [word for word, its in groups.items() if its == group]
        ending = number if group != "blind" else 0
        for place, word in enumerate(words):
            hop = place < len(words) - ending
            procedures[word] = next(looked_up[group] if hop else numbers)
    return procedures


def wrong_habit(procedure: Procedure, turn: int) -> Procedure:
    """For each place a wrong decision of the same sort; they take turns from word to word."""
    wrong = []
    for place, right in enumerate(procedure):
        options = [choice for choice in alternatives(right) if choice != right]
        wrong.append(options[(turn + turn // len(options) * place) % len(options)])
    return tuple(wrong)


def alternatives(choice: str) -> tuple[str, ...]:
    """The decisions of the same sort: relations, attributes or operations."""
    return next(
        sort for sort in (RELATIONS, ATTRIBUTES, tuple(OPERATIONS), (choice,)) if choice in sort
    )
