"""What every task is made of: a question, and the functions a task offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

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


def unscripted(*_: Any, **__: Any) -> NoReturn:
    """Stands where a made task has a scripted agent. Settings that need one are refused before."""
    raise ValueError(
        "task.name: this task has no scripted agent, so there is no cold start from "
        "demonstrations and no gate; start from model.folder and leave 'sft' out of stages; fill "
        "the buffer from buffer.files (buffer.agent='none') or with buffer.agent='checkpoint'"
    )


class Task(NamedTuple):
    """A task family as functions. A world is whatever `make_world` returns; only they read it."""

    make_world: Callable[..., Any]
    """Keyword-only hyper-parameters -> world; the same values give the same world."""
    questions: Callable[[Any, str], list[Question]]
    """(world, split) -> all questions of 'train', 'eval' or 'expert', in a fixed order."""
    documents: Callable[[Any], list[str]]
    """The corpus of the search tool, one passage an item."""
    corpus: Callable[[Any], list[str]]
    """Lines of text to train a tokenizer on."""
    expert: Callable[..., Agent]
    """(world, *, error) -> the noisy off-policy agent that fills the Step-Trace Buffer."""
    demonstrator: Callable[..., Agent]
    """(world, *, follow, weak_first, weak_habit, weak_stop) -> the agent of the cold start."""
    random_retrieved_step: Callable[..., str]
    """(world, rng, *, number) -> an uninformative step trace for the cold start."""
    injector: Callable[..., Callable[[str, np.random.Generator], str | None]]
    """(world, *, probability) -> the `inject` argument of `run_agents` for the cold start."""
    retrieved_decision: Callable[[str], str | None]
    """Decision of the step trace that ends a history, None if no trace does (follow rate)."""
    decision: Callable[[str], str | None]
    """Decision that a step text takes (follow rate)."""
    can_follow: Callable[[str, str], bool]
    """(decision, history) -> whether it can be taken there (follow rate)."""
    system_prompt: str
    kinds: tuple[str, ...]
    sources: Callable[[Any], list[Mapping[str, Any]]]
    """What was read from files, a 'summary' for people included; nothing for a made world."""

    @property
    def scripted(self) -> bool:
        """Whether there is a demonstrator to learn the protocol from, and gates to measure."""
        return self.demonstrator is not unscripted


SPLITS: Sequence[str] = ("train", "eval", "expert")
