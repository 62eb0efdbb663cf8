"""A task and a reward that a user wrote, by config path (task.name, task.reward)."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence

from rapo_jax.io.user_code import load_function
from rapo_jax.tasks.dataset import World, shared_questions, unscripted_task
from rapo_jax.tasks.reward import outcome_reward
from rapo_jax.tasks.schema import Question, Score, Task, check_ids
from rapo_jax.text.protocols import AnswerRule

LARGEST_REWARD = 1e18
"""Advantages are computed in float32: squares of much larger rewards would be infinite there."""
_LISTS = ("train", "eval", "documents")


def question_task(make: Callable[..., Mapping[str, Sequence[object]]]) -> Task:
    """A task of questions that a function makes, for task.name='module:NAME'.

    `make` is called with task.user_arguments as keyword arguments. It returns {'train': [...],
    'eval': [...]}, each question a pair (text, answer), (text, [answers]) or a `Question` whose id
    no other one of its list has, and perhaps 'documents': [text, ...], the passages to search.
    Equal arguments must give equal questions in the same order. The task has no scripted agents:
    see `unscripted`.
    """

    def make_world(**arguments: object) -> World:
        signature = inspect.signature(make)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ValueError(
                f"task.user_arguments={arguments!r}: {make.__name__}{signature}: {error}"
            ) from None
        try:
            made = make(**arguments)
        except (ValueError, OSError) as error:  # with its traceback, as any error in a user's code
            raise RuntimeError(f"task.name: {make.__name__} fails") from error
        if not isinstance(made, Mapping) or not {"train", "eval"} <= set(made) <= set(_LISTS):
            returned = sorted(made) if isinstance(made, Mapping) else type(made).__name__
            raise ValueError(
                f"task.name: {make.__name__} must return {{'train': [...], 'eval': [...]}}, and "
                f"perhaps 'documents', not {returned}"
            )
        documents = [
            _document(make.__name__, n, x) for n, x in enumerate(made.get("documents", ()))
        ]
        train, held_out = (
            _questions(make.__name__, split, made[split]) for split in ("train", "eval")
        )
        summary = f"{make.__name__}: {len(train)} questions, {len(held_out)} held out"
        return World(
            train, held_out, documents, [{"summary": summary}, *shared_questions(train, held_out)]
        )

    return unscripted_task(make_world)


def _document(maker: str, number: int, given: object) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"task.name: {maker}: document {number} is no text but {given!r}")
    return given


def _questions(maker: str, split: str, given: Sequence[object]) -> list[Question]:
    questions = [_question(maker, split, n, x) for n, x in enumerate(given)]
    check_ids(questions, f"task.name: {maker}: {split!r}")
    return questions


def _question(maker: str, split: str, number: int, given: object) -> Question:
    wrong = ValueError(
        f"task.name: {maker}: question {number} of {split!r} is no (text, answer) or (text, "
        f"[answers]) but {given!r}"
    )
    if isinstance(given, Question):
        text, answers = given.question, given.answers
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        text, answers = given
    else:
        raise wrong
    if not isinstance(answers, Sequence) or not answers:
        raise wrong
    answers = (answers,) if isinstance(answers, str) else tuple(answers)
    if not all(isinstance(x, str) and x.strip() for x in (text, *answers)):
        raise wrong
    if isinstance(given, Question):
        return dataclasses.replace(given, answers=answers)
    return Question(f"{split}-{number}", text, answers, kind="user", source=maker)


def find_reward(
    path: str, *, metric: str, user_tools: tuple[str, ...], answers: AnswerRule = "tagged"
) -> Score:
    """The outcome reward of task.reward: '' is the paper's, else 'module:function'.

    A user's reward is called with the response's text, without retrieved traces, and all answers
    that count as right. The paper's reward needs the tags of `user_tools`, and `answers` of the
    protocol.

    Raises:
        ValueError: the function cannot be loaded.
        RuntimeError: when called, and the function raised or gave no finite number.
    """
    if not path:
        return functools.partial(
            outcome_reward, metric=metric, user_tools=user_tools, answers=answers
        )
    function = load_function(path, key="task.reward", takes=("text", "gold_answers"))

    def reward(text: str, gold_answers: Sequence[str]) -> float:
        try:
            value = function(text, tuple(gold_answers))
        except (Exception, SystemExit) as error:
            # no ValueError: readers of files would count it as a malformed line
            raise RuntimeError(
                f"task.reward={path!r}: it raised {type(error).__name__} for {text!r}"
            ) from error
        if not isinstance(value, numbers.Real) or not _fits(value):
            raise RuntimeError(
                f"task.reward={path!r}: it gave {_shown(value)} and no number of at most "
                f"{LARGEST_REWARD:g} in size for {text!r}"
            )
        return float(value)

    return reward


def _fits(value: numbers.Real) -> bool:
    try:
        return abs(float(value)) <= LARGEST_REWARD
    except OverflowError:  # an integer of more than 308 digits
        return False


def _shown(value: object) -> str:
    """The value's text; its type alone where it has none, as an integer of 5,000 digits."""
    try:
        return repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
