"""Scripted agents of the chains task: they read text, and the chain that each word denotes.

An agent's step is one decision: look up a relation or the age, compute, or answer ('done'). It is
as short as the protocol allows. The present value (an entity or a number) is read from the last
`<result>` that is not part of a retrieved trace.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from rapo_jax.tasks.chains import (
    ATTRIBUTE,
    DONE,
    HIDDEN_KINDS,
    LONGEST_CHAIN,
    OPERATIONS,
    RELATIONS,
    World,
)
from rapo_jax.tasks.schema import Agent
from rapo_jax.tasks.synthetic import is_number, pick, results, retrieved_decision

WEAK_AGE = 0.2
"""Probability that the weak demonstrator looks up the age of a number word, from step 3 on."""

_PASSAGE = re.compile(r"\W*(?:\d+\W+)?[A-Z][a-z]+ [a-z]+ ([A-Z][a-z]+|\d+)\b")
_NUMBER = re.compile(r"\s*(-?\d+)\s*\Z")
_QUESTION = re.compile(r"is the (\w+) of (\w+)")


class Situation(NamedTuple):
    """What an agent reads from the text."""

    word: str
    value: str
    """The present entity or number."""
    steps: int
    """Calls made so far."""
    lost: bool
    """The last result could not be read: answer with the present value."""
    computed: bool
    """The last result is a bare number, as the python tool prints it."""


def step_text(decision: str, value: str) -> str:
    """A step in the protocol: the decision as the thought, then its call or the answer."""
    if decision == DONE:
        return f"<think> {DONE}</think><answer>\\boxed{{ {value}}}</answer>"
    if decision in OPERATIONS:
        expression = OPERATIONS[decision].format(value)
        return f"<think> {decision}</think><python>print({expression})</python>"
    return f"<think> {decision}</think><search> {value} {decision}</search>"


def read_situation(question: str, history: str) -> Situation:
    """Reads word, present value and number of steps from the text without retrieved traces."""
    asked = _QUESTION.search(question)
    word, value = (asked[1], asked[2]) if asked else ("", "")
    lost, computed = not asked, False
    observed = results(history)
    for result in observed:
        passage, number = _PASSAGE.match(result), _NUMBER.match(result)
        match = passage or number
        lost, computed = match is None, number is not None
        value = match[1] if match else value
    return Situation(word, value, len(observed), lost, computed)


def applicable(choice: str, now: Situation) -> bool:
    """Whether a decision can be taken now: a look-up needs an entity, an operation an age.

    An operation on a computed number is not allowed: no chain has two, and results would leave the
    range 1 to 98.
    """
    if choice == DONE:
        return True
    if is_number(now.value):
        return choice in OPERATIONS and not now.computed
    return choice in RELATIONS or choice == ATTRIBUTE


def can_follow(choice: str, history: str) -> bool:
    """Whether a decision can be taken at the end of a history, retrieved traces left out."""
    now = read_situation("", history)
    return not now.lost and now.steps < LONGEST_CHAIN and applicable(choice, now)


def _planned(world: World, now: Situation) -> str:
    """The right decision at this place of the word's chain; 'done' after its end."""
    chain = world.chains.get(now.word, ())
    choice = chain[now.steps] if now.steps < len(chain) else DONE
    return choice if applicable(choice, now) else DONE


def _another(rng: np.random.Generator, choice: str) -> str:
    """A random other relation in place of a relation, a random other operation in place of one."""
    for group in (RELATIONS, tuple(OPERATIONS)):
        if choice in group:
            return pick(rng, [other for other in group if other != choice])
    return choice


def expert(world: World, *, error: float) -> Agent:
    """The off-policy agent: the right chain, with noise.

    Each relation and operation is replaced by a random other one with probability `error`; with
    probability `error / 2` the agent answers one step early.
    """

    def act(question: str, history: str, rng: np.random.Generator) -> str:
        now = read_situation(question, history)
        choice = DONE if now.lost else _planned(world, now)
        wrong, early = rng.random(2)
        is_last = now.steps == len(world.chains.get(now.word, ())) - 1
        if 0 < now.steps and is_last and early < error / 2:
            choice = DONE
        elif wrong < error:
            choice = _another(rng, choice)
        return step_text(choice, now.value)

    return act


def demonstrator(
    world: World, *, follow: float, weak_first: float, weak_habit: float, weak_stop: float
) -> Agent:
    """The agent of the cold start: right on demonstrated words, weak on hidden ones.

    After a retrieved trace it applies the trace's decision to its present value with probability
    `follow`, where that is possible: this teaches a small model to follow retrieved steps. For a
    hidden word the first relation is right with probability `weak_first`; a later decision is the
    word's wrong habit with probability `weak_habit` and else random, and after two steps each step
    stops with probability `weak_stop`. There are never more calls than the longest chain needs.
    Habits teach a small model that later decisions depend on the word, but not which are right:
    without them hidden words are all alike before RL, and the decision that is right for the first
    words it learns becomes the decision for all.
    """

    def weak(now: Situation, rng: np.random.Generator) -> str:
        """A decision for a hidden word."""
        chain = world.chains[now.word]
        right, stop, age, habitual = rng.random(4)
        relation, operation = pick(rng, RELATIONS), pick(rng, tuple(OPERATIONS))
        if now.steps == 0:
            return chain[0] if right < weak_first else relation
        habit = world.habits[now.word][now.steps]
        if habitual < weak_habit:
            relation = habit if habit in RELATIONS else relation
            operation = habit if habit in OPERATIONS else operation
        if is_number(now.value):
            return DONE if now.computed else operation
        if now.steps >= 2 and stop < weak_stop:
            return DONE
        looks_age_up = ATTRIBUTE in chain and 2 <= now.steps < LONGEST_CHAIN - 1 and age < WEAK_AGE
        return ATTRIBUTE if looks_age_up else relation

    def act(question: str, history: str, rng: np.random.Generator) -> str:
        now = read_situation(question, history)
        hint = retrieved_decision(history)
        follows = rng.random() < follow
        if now.lost or now.steps >= LONGEST_CHAIN:
            choice = DONE
        elif hint is not None and follows and applicable(hint, now):
            choice = hint
        elif world.kinds.get(now.word) in HIDDEN_KINDS:
            choice = weak(now, rng)
        else:
            choice = _planned(world, now)
        return step_text(choice, now.value)

    return act
