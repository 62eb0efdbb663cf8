"""Code of a user, which tests name by config path."""

from __future__ import annotations

import sys

from rapo_jax.tasks import Question, outcome_reward, question_task

NOT_CALLABLE = 3


def shout(text):
    """Says it louder.

    This is not shown to the agent.
    """
    return text.upper() + "!"


def broken(text):
    return {}[text]


def of_tuples(text, gold_answers):
    """The paper's reward, for golds of one type on all processes."""
    assert isinstance(gold_answers, tuple)
    return outcome_reward(text, gold_answers)


def quarter(text, gold_answers):
    return 0.25


def not_finite(text, gold_answers):
    return float("nan")


def too_large(text, gold_answers):
    return 1e19  # its square is not finite in float32


def too_long(text, gold_answers):
    return 10**400  # no float


def far_too_long(text, gold_answers):
    return 10**5000  # no text either


def no_number(text, gold_answers):
    return "0.5"


def raises(text, gold_answers):
    raise ValueError("no such unit")


def leaves(text, gold_answers):
    sys.exit(0)


def takes_nothing():
    return 0.0


async def later(text):
    return text


def neighbours(*, held_out=2):
    words = ["Anna", "Bob", "Carla", "Dora", "Emil", "Fred"]
    asked = [(f"Who is next to {word}?", word) for word in words]
    named = [Question("q", "Who sees Bob?", ("Bob", "nobody"), "seeing", "by hand")]
    return {
        "train": asked[held_out:],
        "eval": [*asked[:held_out], *named],
        "documents": [f"{word} is next to {word}" for word in words],
    }


NEIGHBOURS = question_task(neighbours)
LEAVES = question_task(lambda: sys.exit(0))
NO_DOCUMENTS = question_task(lambda: {"train": [("a", "b")], "eval": [("c", ["d", "e"])]})
REPEATS = NO_DOCUMENTS._replace(questions=lambda world, split: 2 * world.train)
