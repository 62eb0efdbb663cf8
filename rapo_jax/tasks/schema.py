"""Types of a task: questions, and functions that generate it and act in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

TaskWorld: TypeAlias = Any
"""What a task's `make_world` returns; only the functions of that task read it."""

Agent = Callable[[str, str, np.random.Generator], str]
"""An off-policy agent: question text, history text, random numbers -> text of the next step."""


Score = Callable[[str, Sequence[str]], float]
"""(response text, gold answers) -> outcome reward."""


@dataclass(frozen=True)
class Question:
    """One question q of a task with every answer that counts as right."""

    id: str
    question: str
    answers: tuple[str, ...]
    kind: str
    source: str


def unscripted(*_: object, **__: object) -> NoReturn:
    """Raises ValueError: placeholder for the scripted functions of a task that has none."""
    raise ValueError(
        "task.name: this task has no scripted agent, so there is no cold start from "
        "demonstrations and no gate; start from model.folder and leave 'sft' out of stages; fill "
        "the buffer from buffer.files (buffer.agent='none') or with buffer.agent='checkpoint'"
    )


def check_ids(questions: Sequence[Question], where: str) -> None:
    """Raises ValueError, beginning with `where`, unless each id is a text and names one question.

    Trajectories, the buffer and LUFFY's groups find a question by its id.
    """
    places: dict[str, int] = {}
    for number, question in enumerate(questions):
        if not isinstance(question.id, str) or not question.id.strip():
            raise ValueError(f"{where}: question {number} has the id {question.id!r}; name it")
        if (first := places.setdefault(question.id, number)) != number:
            raise ValueError(
                f"{where}: questions {first} and {number} have the same id, {question.id!r}; an id "
                "names one question"
            )


def question_of(values: Mapping[str, Any]) -> Question:
    """The question of `dataclasses.asdict`, also where its answers went through JSON as a list."""
    return Question(**{**values, "answers": tuple(values["answers"])})


class Task(NamedTuple):
    """A task family as functions."""

    make_world: Callable[..., TaskWorld]
    """Keyword-only hyper-parameters -> world; the same values give the same world."""
    questions: Callable[[TaskWorld, str], list[Question]]
    """(world, split) -> all questions of 'train', 'eval' or 'expert', in a fixed order."""
    documents: Callable[[TaskWorld], list[str]]
    """The passages that the search tool searches."""
    corpus: Callable[[TaskWorld], list[str]]
    """Lines of text to train a tokenizer on."""
    system_prompt: str
    sources: Callable[[TaskWorld], list[Mapping[str, object]]] = lambda world: []
    """Reports of the files that were read, each with a 'summary' for people."""
    kinds: tuple[str, ...] = ()
    """Of questions; the first are the easiest, which the gate of the cold start measures."""
    calls: int = 0
    """Tool calls that its scripted agents make at most."""
    expert: Callable[..., Agent] = unscripted
    """(world, *, error) -> the noisy off-policy agent that fills the Step-Trace Buffer."""
    demonstrator: Callable[..., Agent] = unscripted
    """(world, *, follow, weak_first, weak_habit, weak_stop) -> the agent of the cold start."""
    injector: Callable[..., Callable[[str, np.random.Generator], str | None]] = unscripted
    """(world, *, probability) -> the `inject` argument of `run_agents` for the cold start."""
    retrieved_decision: Callable[[str], str | None] = unscripted
    """Decision of the step trace that ends a history, None if no trace does (follow rate)."""
    decision: Callable[[str], str | None] = unscripted
    """Decision that a step text takes (follow rate)."""
    can_follow: Callable[[str, str], bool] = unscripted
    """(decision, history) -> whether it can be taken there (follow rate)."""

    @property
    def scripted(self) -> bool:
        """Whether there is a demonstrator to learn the protocol from, and gates to measure."""
        return self.demonstrator is not unscripted


SPLITS: Sequence[str] = ("train", "eval", "expert")
