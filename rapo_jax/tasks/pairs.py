"""The pairs task: questions that compose two words. Its world, questions and documents.

A question is two opaque words and an entity, such as 'who is the zemlo of the vap of Dorim ?'.
Each word denotes a *procedure* of two decisions: relations to look up, or a number to look up
and an operation on it; the inner word comes first. Words are `known`, `mastered` or `blind` by who
is right on them (docs/pairs.md). Pairs of words are held out, and start entities too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rapo_jax.tasks.chains import OPERATIONS, apply_operation
from rapo_jax.tasks.pairs_words import (
    ATTRIBUTES,
    COMMUTING,
    PROCEDURE,
    RELATIONS,
    Procedure,
    make_procedures,
    wrong_habit,
)
from rapo_jax.tasks.schema import SPLITS, Question
from rapo_jax.tasks.synthetic import invent

CHECK = "check"
"""Looks an entity up and returns it: a wasted call."""
DONE = "done"
NUMBERS = range(10, 50)
NEEDED_CALLS = 2 * PROCEDURE
MOST_CALLS = NEEDED_CALLS + 2
"""NEEDED_CALLS and the calls that the teacher wastes."""
KINDS = ("known", "blind", "mixed", "mastered")
TRAINED_KINDS = KINDS[:3]
SYSTEM_PROMPT = "use tools ; retrieve may help"
SENTENCE_WORDS = tuple("who what is the of print boxed search python answer".split())


class Pair(NamedTuple):
    """The words of a question, in the order of its text."""

    outer: str
    inner: str


@dataclass(frozen=True)
class World:
    """All facts, words and questions. Only tools and answers may use `facts`."""

    seed: int
    starts: dict[str, tuple[str, ...]]
    """Split -> the entities that its questions start from; disjoint."""
    facts: dict[tuple[str, str], str]
    """(entity, relation or attribute) -> entity or number."""
    procedures: dict[str, Procedure]
    groups: dict[str, str]
    """Word -> known, mastered or blind."""
    habits: dict[str, Procedure]
    """Wrong procedure of a word: of a blind one the teacher's, of a mastered one the policy's."""
    pairs: dict[str, dict[str, tuple[Pair, ...]]]
    """Split -> kind -> pairs; those of 'eval' are in no other split."""
    sizes: dict[str, int]
    """Split -> questions of each kind."""

    @property
    def entities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entity for entity, _ in self.facts))

    def answer(self, pair: Pair, start: str, *, mistaken: Sequence[str] = ()) -> str:
        """Result of the procedures from `start`; `mistaken` words follow their habits instead."""
        value = start
        for word in (pair.inner, pair.outer):
            for decision in (self.habits if word in mistaken else self.procedures)[word]:
                value = self.outcome(decision, value)
        return value

    def outcome(self, decision: str, value: str) -> str:
        """What the tools return for a decision that can be taken at `value`."""
        if decision in OPERATIONS:
            return str(apply_operation(decision, int(value)))
        return value if decision == CHECK else self.facts[value, decision]


def make_world(
    *,
    seed: int,
    n_entities: int,
    n_train: int,
    n_eval: int,
    n_expert: int,
    known: int,
    mastered: int,
    blind: int,
    number: int,
    train_questions: int,
    eval_questions: int,
    expert_questions: int,
) -> World:
    """Generates a world; the same arguments always give the same one.

    `number` of the known words and of the mastered ones each end in a number; the last three
    arguments are the questions of a kind. Raises ValueError for numbers that do not fit.
    """
    if min(n_train, n_eval, n_expert) < 1 or n_train + n_eval + n_expert > n_entities:
        raise ValueError(
            f"task.pairs.n_entities={n_entities}: needs at least n_train + n_eval + n_expert = "
            f"{n_train} + {n_eval} + {n_expert}, each at least 1"
        )
    _check_words(known=known, mastered=mastered, blind=blind, number=number)
    rng = np.random.default_rng([seed, 0x9A125])
    sizes = {"known": known, "mastered": mastered, "blind": blind}
    taken = (*RELATIONS, *ATTRIBUTES, *OPERATIONS, CHECK, DONE)
    names = invent(
        rng,
        n_entities + sum(sizes.values()),
        taken=(*taken, *SENTENCE_WORDS, *SYSTEM_PROMPT.split()),
    )
    entities = [name.capitalize() for name in names[:n_entities]]
    facts = _facts(rng, entities)
    groups = dict(
        zip(
            names[n_entities:],
            [group for group, size in sizes.items() for _ in range(size)],
            strict=True,
        )
    )
    procedures = make_procedures(rng, groups, number)
    weak = [word for word, group in groups.items() if group != "known"]
    habits = {word: wrong_habit(procedures[word], turn) for turn, word in enumerate(weak)}
    cuts = itertools.accumulate((n_train, n_eval, n_expert), initial=0)
    starts = {
        split: tuple(entities[first:last])
        for split, (first, last) in zip(SPLITS, itertools.pairwise(cuts), strict=True)
    }
    wanted = dict(zip(SPLITS, (train_questions, eval_questions, expert_questions), strict=True))
    trained, held_out = _split_pairs(groups, procedures)
    pairs = {"train": trained, "eval": held_out, "expert": trained}
    return World(seed, starts, facts, procedures, groups, habits, pairs, wanted)


def _check_words(*, known: int, mastered: int, blind: int, number: int) -> None:
    hops = len(RELATIONS) ** 2 - len(COMMUTING)  # 'known' alone has one of the commuting two
    looked_up = known + mastered + blind - 2 * number
    least = {"known": known - number, "mastered": mastered - number, "blind": blind}
    for key, count in least.items():
        if count < 2:
            raise ValueError(
                f"task.pairs.{key}: {count} words end in an entity; needs at least 2, so that "
                "every word is in training pairs and in held-out ones"
            )
    if looked_up > hops + 1 or 2 * number > len(ATTRIBUTES) * len(OPERATIONS):
        raise ValueError(
            f"task.pairs.known={known}, task.pairs.mastered={mastered}, task.pairs.blind={blind}, "
            f"task.pairs.number={number}: there are only {hops + 1} procedures of two look-ups and "
            f"{len(ATTRIBUTES) * len(OPERATIONS)} with a number"
        )


def _facts(rng: np.random.Generator, entities: Sequence[str]) -> dict[tuple[str, str], str]:
    """Facts of all entities: the commuting relations are steps of two lengths around one circle."""
    count = len(entities)
    around = rng.permutation(count)
    place = np.argsort(around)
    lengths = rng.choice(np.arange(1, count), size=len(COMMUTING), replace=False)
    leads = {
        relation: around[(place + length) % count]
        for relation, length in zip(COMMUTING, lengths, strict=True)
    }
    for relation in RELATIONS:
        if relation not in leads:
            others = rng.integers(count - 1, size=count)
            leads[relation] = others + (others >= np.arange(count))
    facts: dict[tuple[str, str], str] = {}
    for index, entity in enumerate(entities):
        facts |= {(entity, relation): entities[leads[relation][index]] for relation in RELATIONS}
        for attribute in ATTRIBUTES:
            facts[entity, attribute] = str(rng.integers(NUMBERS.start, NUMBERS.stop))
    return facts


def _split_pairs(
    groups: Mapping[str, str], procedures: Mapping[str, Procedure]
) -> tuple[dict[str, tuple[Pair, ...]], dict[str, tuple[Pair, ...]]]:
    """Splits pairs into training and held-out ones, by kind.

    Of the kinds of training every third pair is held out, by turns, so that each word is in pairs
    of both; those of mastered words with known ones are all held out.
    """
    place = {
        word: index
        for group in ("known", "mastered", "blind")
        for index, word in enumerate(w for w, its in groups.items() if its == group)
    }
    trained: dict[str, list[Pair]] = {kind: [] for kind in TRAINED_KINDS}
    held_out: dict[str, list[Pair]] = {kind: [] for kind in KINDS}
    for outer, inner in itertools.permutations(groups, 2):
        if groups[inner] == "mastered" or procedures[inner][-1] in OPERATIONS:
            continue
        kind = _kind(groups[outer], groups[inner])
        third = (place[outer] + place[inner]) % 3 == 0
        (held_out if third or kind not in trained else trained)[kind].append(Pair(outer, inner))
    return (
        {kind: tuple(pairs) for kind, pairs in trained.items()},
        {kind: tuple(pairs) for kind, pairs in held_out.items()},
    )


def _kind(outer: str, inner: str) -> str:
    if outer == "mastered":
        return "mixed" if inner == "blind" else "mastered"
    return "blind" if "blind" in (outer, inner) else "known"


def questions(world: World, split: str) -> list[Question]:
    """All questions of a split: of each kind the same number, the pairs in turn.

    Left out are those that a wrong habit happens to answer right. Raises ValueError where there are
    too few start entities.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    wanted = world.sizes[split]
    chosen = []
    for kind, pairs in world.pairs[split].items():
        some = list(itertools.islice(_questions(world, split, kind, pairs), wanted))
        if len(some) < wanted:
            raise ValueError(
                f"task.pairs.{split}_questions={wanted}: there are only {len(some)} of kind "
                f"{kind!r}; lower it or raise task.pairs.n_{split}={len(world.starts[split])}"
            )
        chosen += some
    return chosen


def _questions(world: World, split: str, kind: str, pairs: Sequence[Pair]) -> Iterator[Question]:
    for start in world.starts[split]:
        for pair in pairs:
            right = world.answer(pair, start)
            if right in habitual_answers(world, pair, start):
                continue
            yield Question(
                id=f"pairs-{world.seed}-{pair.outer}-{pair.inner}-{start}",
                question=question_text(world, pair, start),
                answers=(right,),
                kind=kind,
                source="pairs",
            )


def habitual_answers(world: World, pair: Pair, start: str) -> set[str]:
    """The answers of those who follow the wrong habit of one word of a pair, or of both."""
    weak = [word for word in pair if word in world.habits]
    subsets = itertools.chain.from_iterable(
        itertools.combinations(weak, size) for size in range(1, len(weak) + 1)
    )
    return {world.answer(pair, start, mistaken=mistaken) for mistaken in subsets}


def question_text(world: World, pair: Pair, start: str) -> str:
    """'who is the zemlo of the vap of Dorim ?', and 'what' where the answer is a number."""
    asks = "what" if world.procedures[pair.outer][-1] in OPERATIONS else "who"
    return f"{asks} is the {pair.outer} of the {pair.inner} of {start} ?"


def documents(world: World) -> list[str]:
    """The search corpus, one fact a document: those of entities, and a table of the operations."""
    facts = [f"{entity} {name} {value}" for (entity, name), value in world.facts.items()]
    facts += [f"{entity} {CHECK} {entity}" for entity in world.entities]
    table = [f"{n} {name} {apply_operation(name, n)}" for name in OPERATIONS for n in NUMBERS]
    return facts + table
