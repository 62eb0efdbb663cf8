"""The questions whose prompts fit into `rollout.prompt_tokens`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from rapo_jax.tasks.schema import Question
from rapo_jax.tasks.stream import QuestionSource


class QuestionSubset:
    """Some questions of a source, by their indices."""

    def __init__(self, source: QuestionSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Question:
        return self._source[self._indices[index]]

    def __iter__(self) -> Iterator[Question]:
        kept = set(self._indices)
        return (question for i, question in enumerate(self._source) if i in kept)


def fitting_questions(
    splits: Mapping[str, QuestionSource],
    length: Callable[[Question], int],
    *,
    limit: int,
    skip: bool,
    whose: str = "",
) -> dict[str, QuestionSource]:
    """The questions whose prompts have at most `limit` tokens; prints how many are left out.

    `length` gives the tokens of a question's prompt, by a tokenizer that `whose` names if it is not
    the run's. Splits may share a source.

    Raises:
        ValueError: none is left of a split, or one is too long and `skip` is false.
    """
    fitting: dict[int, QuestionSource] = {}
    for split, source in splits.items():
        if id(source) not in fitting:
            fitting[id(source)] = _fitting(
                source, length, limit=limit, split=split, skip=skip, whose=whose
            )
    return {split: fitting[id(source)] for split, source in splits.items()}


def _fitting(
    source: QuestionSource,
    length: Callable[[Question], int],
    *,
    limit: int,
    split: str,
    skip: bool,
    whose: str,
) -> QuestionSource:
    lengths = list(map(length, source))
    kept = [i for i, each in enumerate(lengths) if each <= limit]
    if len(kept) == len(lengths):
        return source
    longest = int(np.argmax(lengths))
    problem = (
        f"{len(lengths) - len(kept)} of the {len(lengths)} questions of {split!r} have a longer "
        f"prompt, {source[longest].id!r} of {lengths[longest]} tokens"
        + (f" of {whose}" if whose else "")
    )
    if not kept or not skip:
        remedy = "raise it" if skip else "raise it, or set task.too_long='skip'"
        raise ValueError(f"rollout.prompt_tokens={limit}: {problem}; {remedy}")
    print(f"[data] rollout.prompt_tokens={limit}: {problem}; they are left out", flush=True)
    return QuestionSubset(source, kept)
