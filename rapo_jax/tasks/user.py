"""A user's own task and own reward, by config path (task.name, task.reward)."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rapo_jax.io.user_code import load_function
from rapo_jax.tasks.dataset import World, shared_questions, unscripted_task
from rapo_jax.tasks.reward import outcome_reward
from rapo_jax.tasks.schema import Question, Score, Task

_LISTS = ("train", "eval", "documents")


def question_task(make: Callable[..., Mapping[str, Sequence[Any]]]) -> Task:
    """A task of questions that a function makes, for task.name='module:NAME'.

    `make` is called with the keys of task.user_arguments. It returns {'train': [...], 'eval':
    [...]}, each question a pair (text, answer), (text, [answers]) or a `Question`, and if the agent
    is to search in passages of the task, 'documents': [text, ...]. Equal keys must give equal
    questions in the same order. There is nothing to script: see `unscripted`.
    """

    def make_world(**keys: Any) -> World:
        told = f"task.user_arguments={keys!r}"
        try:
            inspect.signature(make).bind(**keys)
        except TypeError as error:
            raise ValueError(f"{told}: {make.__name__}{inspect.signature(make)}: {error}") from None
        made = make(**keys)
        if not isinstance(made, Mapping) or not {"train", "eval"} <= set(made) <= set(_LISTS):
            found = sorted(made) if isinstance(made, Mapping) else type(made).__name__
            raise ValueError(
                f"task.name: {make.__name__} must return {{'train': [...], 'eval': [...]}}, and "
                f"perhaps 'documents', not {found}"
            )
        documents = list(made.get("documents", ()))
        for number, document in enumerate(documents):
            if not isinstance(document, str) or not document.strip():
                raise ValueError(
                    f"task.name: {make.__name__}: document {number} is no text but {document!r}"
                )
        train, held_out = (
            [_question(make.__name__, split, n, x) for n, x in enumerate(made[split])]
            for split in ("train", "eval")
        )
        told = f"{make.__name__}: {len(train)} questions, {len(held_out)} held out"
        files: list[Mapping[str, Any]] = [{"summary": told}, *shared_questions(train, held_out)]
        return World(train, held_out, documents, files)

    return unscripted_task(make_world)


def _question(maker: str, split: str, number: int, given: Any) -> Question:
    if isinstance(given, Question):
        return given
    wrong = ValueError(
        f"task.name: {maker}: question {number} of {split!r} is no (text, answer) or (text, "
        f"[answers]) but {given!r}"
    )
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        raise wrong
    text, answers = given
    if not isinstance(answers, Sequence) or not answers:
        raise wrong
    answers = (answers,) if isinstance(answers, str) else tuple(answers)
    if not all(isinstance(x, str) and x.strip() for x in (text, *answers)):
        raise wrong
    return Question(f"{split}-{number}", text, answers, kind="own", source=maker)


def find_reward(path: str, *, metric: str, user_tools: tuple[str, ...]) -> Score:
    """The outcome reward of task.reward: '' is the paper's, else 'module:function'.

    An own reward is called with the response's text, without retrieved traces, and all answers that
    count as right. `own` are the tags of own tools, which the paper's reward has to know.

    Raises:
        ValueError: the function cannot be loaded.
        RuntimeError: when called, and the function raised or gave no finite number.
    """
    if not path:
        return functools.partial(outcome_reward, metric=metric, user_tools=user_tools)
    told = f"task.reward={path!r}"
    function = load_function(path, key="task.reward", takes=("text", "gold_answers"))

    def reward(text: str, gold_answers: Sequence[str]) -> float:
        try:
            value = function(text, gold_answers)
        except Exception as error:
            # no ValueError: the readers of files would count it as a malformed line of theirs
            raise RuntimeError(f"{told}: it raised {type(error).__name__} for {text!r}") from error
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise RuntimeError(f"{told}: it gave {value!r} and no finite number for {text!r}")
        return float(value)

    return reward
