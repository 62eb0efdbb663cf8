"""Texts of the chains task for the cold start: tokenizer corpus and uninformative step traces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rapo_jax.tasks.chains import (
    AGES,
    ATTRIBUTE,
    DONE,
    LONGEST_CHAIN,
    OPERATIONS,
    RELATIONS,
    SENTENCE_WORDS,
    SYSTEM_PROMPT,
    World,
    apply_operation,
    documents,
    questions,
)
from rapo_jax.tasks.chains_agents import read_situation, step_text
from rapo_jax.tasks.schema import SPLITS
from rapo_jax.tasks.synthetic import is_number, pick


def corpus(world: World) -> list[str]:
    """Lines to build a tokenizer on: questions, steps, results and the system prompt.

    A name or a word always follows a space, so that each has one form and one token.
    """
    plain = [*world.entities, *world.chains, *RELATIONS, ATTRIBUTE, *OPERATIONS, DONE]
    plain += [str(number) for number in range(100)]
    plain += [*SENTENCE_WORDS, *SYSTEM_PROMPT.split()]
    lines = [f"<think> {word}</think>" for word in plain] * 2
    lines += [q.question for split in SPLITS for q in questions(world, split)]
    for entity in world.entities:
        for decision in (*RELATIONS, ATTRIBUTE):
            lines.append(step_text(decision, entity))
        lines.append(step_text(DONE, entity))
    for number in range(100):
        lines += [step_text(operation, str(number)) for operation in (*OPERATIONS, DONE)]
    lines += [f"<result> {document} ;</result>" for document in documents(world)]
    return [*lines, SYSTEM_PROMPT, SYSTEM_PROMPT]


def random_retrieved_step(world: World, rng: np.random.Generator, *, number: bool) -> str:
    """A step trace without information about the present question: a random decision for a random
    start entity of the expert's split (or, with `number`, for a random number).

    The observation is that of a search that returns one passage, the right fact.
    """
    start = pick(rng, world.starts["expert"])
    if number:
        decision = pick(rng, [*OPERATIONS, DONE])
        value = _random_age(rng)
        if decision == DONE:
            return step_text(DONE, str(value))
        observation = apply_operation(decision, value)
        return f"{step_text(decision, str(value))}<result> {observation}</result>"
    decision = pick(rng, [*RELATIONS, ATTRIBUTE, DONE])
    if decision == DONE:
        return step_text(DONE, start)
    fact = world.ages[start] if decision == ATTRIBUTE else world.facts[start, decision]
    return f"{step_text(decision, start)}<result> {start} {decision} {fact}</result>"


def _random_age(rng: np.random.Generator) -> int:
    return int(rng.integers(AGES.start, AGES.stop))


def injector(
    world: World, *, probability: float
) -> Callable[[str, np.random.Generator], str | None]:
    """The `inject` of `run_agents`: at a boundary, with `probability`, a random retrieved step that
    fits the present value (an operation for an age, a look-up for an entity, or an answer).

    Nothing is retrieved after as many calls as the longest chain needs: a demonstrator could not
    follow it within the limit.
    """

    def inject(history: str, rng: np.random.Generator) -> str | None:
        now = read_situation("", history)
        if rng.random() >= probability or now.steps >= LONGEST_CHAIN:
            return None
        if now.computed:
            return step_text(DONE, str(_random_age(rng)))
        return random_retrieved_step(world, rng, number=is_number(now.value))

    return inject
