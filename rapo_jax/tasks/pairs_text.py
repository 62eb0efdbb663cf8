"""Texts of the pairs task for the cold start: tokenizer corpus and uninformative step traces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rapo_jax.tasks.chains import OPERATIONS
from rapo_jax.tasks.pairs import (
    CHECK,
    DONE,
    MOST_CALLS,
    NEEDED_CALLS,
    NUMBERS,
    SENTENCE_WORDS,
    SYSTEM_PROMPT,
    World,
    documents,
    questions,
)
from rapo_jax.tasks.pairs_agents import read_situation, step_text
from rapo_jax.tasks.pairs_words import ATTRIBUTES, RELATIONS
from rapo_jax.tasks.schema import SPLITS
from rapo_jax.tasks.synthetic import is_number, pick


def corpus(world: World) -> list[str]:
    """Lines to build a tokenizer on: questions, steps, results and the system prompt.

    A name or a word always follows a space, so that each has one form and one token.
    """
    lookups = (*RELATIONS, *ATTRIBUTES, CHECK)
    plain = [*world.entities, *world.groups, *lookups, *OPERATIONS, DONE]
    plain += [str(number) for number in range(100)]
    plain += [*SENTENCE_WORDS, *SYSTEM_PROMPT.split()]
    lines = [f"<think> {word}</think>" for word in plain] * 2
    lines += [q.question for split in SPLITS for q in questions(world, split)]
    for entity in world.entities:
        lines += [step_text(decision, entity) for decision in (*lookups, DONE)]
    for number in map(str, range(100)):
        for decision in (*OPERATIONS, DONE):
            lines += [step_text(decision, number, python=python) for python in (False, True)]
    lines += [f"<result> {document} ;</result>" for document in documents(world)]
    return [*lines, SYSTEM_PROMPT, SYSTEM_PROMPT]


def random_retrieved_step(world: World, rng: np.random.Generator, *, number: bool) -> str:
    """A step trace without information about the present question: a random decision for a random
    start entity of the teacher's split (or, with `number`, for a random number).

    The observation is that of a search that returns one passage, or of the Python tool.
    """
    if number:
        decision, value = (
            pick(rng, [*OPERATIONS, DONE]),
            str(rng.integers(NUMBERS.start, NUMBERS.stop)),
        )
        if decision == DONE:
            return step_text(DONE, value)
        printed = world.outcome(decision, value)
        return f"{step_text(decision, value, python=True)}<result> {printed}</result>"
    start = pick(rng, world.starts["expert"])
    decision = pick(rng, [*RELATIONS, *ATTRIBUTES, CHECK, DONE])
    if decision == DONE:
        return step_text(DONE, start)
    fact = f"{start} {decision} {world.outcome(decision, start)}"
    return f"{step_text(decision, start)}<result> {fact}</result>"


def injector(
    world: World, *, probability: float
) -> Callable[[str, np.random.Generator], str | None]:
    """The `inject` of `run_agents`: at a boundary, with `probability`, a random retrieved step that
    fits the present value (an operation for a number, a look-up for an entity, or an answer).

    Nothing is retrieved once the calls that a question needs are made.
    """

    def inject(history: str, rng: np.random.Generator) -> str | None:
        now = read_situation("", history)
        ended = now.steps >= NEEDED_CALLS or now.steps + now.checks >= MOST_CALLS
        if rng.random() >= probability or ended:
            return None
        if now.computed:
            return step_text(DONE, str(rng.integers(NUMBERS.start, NUMBERS.stop)))
        return random_retrieved_step(world, rng, number=is_number(now.value))

    return inject
