"""Scripted agents of the pairs task: the teacher that fills the buffer, and the demonstrator.

As those of the chains task they read text alone: the present value is read from the last `<result>`
that is not part of a retrieved trace. A step is one decision.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from rapo_jax.tasks.chains import OPERATIONS
from rapo_jax.tasks.pairs import (
    CHECK,
    DONE,
    MOST_CALLS,
    NEEDED_CALLS,
    Pair,
    World,
)
from rapo_jax.tasks.pairs_words import ATTRIBUTES, COMMUTING, PROCEDURE, RELATIONS, alternatives
from rapo_jax.tasks.schema import Agent
from rapo_jax.tasks.synthetic import is_number, pick, results, retrieved_decision

WASTE = 0.25
"""Probability that the teacher looks an entity up once more."""
COMPUTES = 0.25
"""Probability that the demonstrator computes with Python instead of looking the result up."""

_QUESTION = re.compile(r"is the (\w+) of the (\w+) of (\w+)")
_FACT = re.compile(r"([A-Z][a-z]+|\d+) ([a-z]+) ([A-Z][a-z]+|\d+)\b")
_PRINTED = re.compile(r"\s*(-?\d+)\s*\Z")


class Situation(NamedTuple):
    """What an agent reads from the text."""

    pair: Pair
    value: str
    """The present entity or number."""
    steps: int
    """Calls made so far that were not checks."""
    checks: int
    lost: bool
    """The last result could not be read: answer with the present value."""
    computed: bool
    """The present number is the result of an operation."""


def step_text(decision: str, value: str, *, python: bool = False) -> str:
    """A step in the protocol: the decision as the thought, then its call or the answer.

    `python` computes with that tool; otherwise the result is looked up in the table.
    """
    if decision == DONE:
        return f"<think> {DONE}</think><answer>\\boxed{{ {value}}}</answer>"
    if python and decision in OPERATIONS:
        expression = OPERATIONS[decision].format(value)
        return f"<think> {decision}</think><python>print({expression})</python>"
    return f"<think> {decision}</think><search> {value} {decision}</search>"


def read_situation(question: str, history: str) -> Situation:
    """Reads the words, the present value and the steps from the text without retrieved traces."""
    asked = _QUESTION.search(question)
    pair, value = (Pair(asked[1], asked[2]), asked[3]) if asked else (Pair("", ""), "")
    lost, computed, checks = not asked, False, 0
    observed = results(history)
    for result in observed:
        fact, printed = _FACT.search(result), _PRINTED.match(result)
        lost = fact is None and printed is None
        checks += fact is not None and fact[2] == CHECK
        computed = printed is not None or fact is not None and is_number(fact[1])
        value = fact[3] if fact else printed[1] if printed else value
    return Situation(pair, value, len(observed) - checks, checks, lost, computed)


def applicable(choice: str, now: Situation) -> bool:
    """Whether a decision can be taken now: a look-up needs an entity, an operation a number.

    An operation on a computed number is not allowed: no procedure has two.
    """
    if choice == DONE:
        return True
    if is_number(now.value):
        return choice in OPERATIONS and not now.computed
    return choice in (*RELATIONS, *ATTRIBUTES, CHECK)


def can_follow(choice: str, history: str) -> bool:
    """Whether a decision can be taken at the end of a history, retrieved traces left out."""
    now = read_situation("", history)
    return not now.lost and not _ended(now) and applicable(choice, now)


def _ended(now: Situation) -> bool:
    return now.steps >= NEEDED_CALLS or now.steps + now.checks >= MOST_CALLS


def _place(now: Situation) -> tuple[str, int]:
    """The word whose turn it is, and the place in its procedure."""
    turn, place = divmod(now.steps, PROCEDURE)
    return (now.pair.inner, now.pair.outer)[turn], place


def expert(world: World, *, error: float) -> Agent:
    """The teacher: right on known and mastered words, always wrong on blind ones, and wasteful.

    A blind word's decisions are its habit. Where two relations commute it takes them in the other
    order. With probability WASTE it checks an entity first, as long as calls are left. Each other
    decision is replaced by a random one of its sort with probability `error`, never by the right
    one of a blind word.
    """

    def act(question: str, history: str, rng: np.random.Generator) -> str:
        now = read_situation(question, history)
        wasteful, wrong = rng.random(2)
        if now.lost or _ended(now) or any(word not in world.groups for word in now.pair):
            return step_text(DONE, now.value)
        if now.checks < MOST_CALLS - NEEDED_CALLS and wasteful < WASTE and applicable(CHECK, now):
            return step_text(CHECK, now.value)
        word, place = _place(now)
        right = world.procedures[word][place]
        choice = teacher_procedure(world, word)[place]
        if wrong < error:
            avoided = {choice, right} if world.groups[word] == "blind" else {choice}
            choice = pick(rng, [other for other in alternatives(choice) if other not in avoided])
        return step_text(choice if applicable(choice, now) else DONE, now.value, python=True)

    return act


def teacher_procedure(world: World, word: str) -> tuple[str, ...]:
    """The teacher's decisions for a word: its habit for a blind one, else the right ones."""
    if world.groups[word] == "blind":
        return world.habits[word]
    right = world.procedures[word]
    return right[::-1] if set(right) == set(COMMUTING) else right


def demonstrator(
    world: World, *, follow: float, weak_first: float, weak_habit: float, weak_stop: float
) -> Agent:
    """The agent of the cold start: right on known words, exploring blind ones, mistaken on others.

    It computes with Python with probability COMPUTES, so that the policy can use the tool, and else
    looks results up. After a retrieved trace it applies the trace's decision to its present value
    with probability `follow`, where that is possible. A decision for a blind word is random; the
    first is right with probability `weak_first`. A decision for a mastered word is its wrong habit
    with probability `weak_habit`, and else random. After two steps each step for such words stops
    with probability `weak_stop`.
    """

    def act(question: str, history: str, rng: np.random.Generator) -> str:
        now = read_situation(question, history)
        hint = retrieved_decision(history)
        follows, first, habitual, stops, tool = rng.random(5)
        python = bool(tool < COMPUTES)
        if now.lost or _ended(now) or any(word not in world.groups for word in now.pair):
            return step_text(DONE, now.value)
        if hint is not None and follows < follow and applicable(hint, now):
            return step_text(hint, now.value, python=python)
        word, place = _place(now)
        group, choice = world.groups[word], world.procedures[word][place]
        if group == "mastered" and habitual < weak_habit:
            choice = world.habits[word][place]
        elif group != "known" and not (group == "blind" and place == 0 and first < weak_first):
            choice = pick(rng, alternatives(choice))
        if group != "known" and now.steps >= PROCEDURE and stops < weak_stop:
            choice = DONE
        return step_text(choice if applicable(choice, now) else DONE, now.value, python=python)

    return act
