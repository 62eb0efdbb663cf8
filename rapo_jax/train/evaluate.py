"""Evaluation on held-out questions, greedy unless asked otherwise, without retrieval."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict, TypeVar

import numpy as np

from rapo_jax.io import watchdog
from rapo_jax.method.tape import response_mask
from rapo_jax.model.sharding import row_shards
from rapo_jax.run.dashboards import SampleSegment, ShownSample
from rapo_jax.run.keys import StageKey, stage_key
from rapo_jax.run.run import Run
from rapo_jax.sampling.batches import even_size, padded_batches
from rapo_jax.sampling.condensing import report_condensing
from rapo_jax.sampling.tapes import segments
from rapo_jax.tasks import Question
from rapo_jax.train.measures import score_rows
from rapo_jax.types import Params, Status, Trajectory

T = TypeVar("T")
MOST_SETS = 32
"""More sets have no accuracy each: a file may give each of its records another `source`."""


class Evaluation(TypedDict):
    """Pass@1 and means over the questions."""

    accuracy: float
    hidden: NotRequired[float]
    """Accuracy on the kinds named hidden..., which the cold start demonstrates with mostly wrong
    decisions."""
    accuracy_by_kind: dict[str, float]
    accuracy_by_set: NotRequired[dict[str, float]]
    """Where the questions are from several sets or files (`Question.source`)."""
    reward: float
    tokens: float
    """Of a response."""
    endings: dict[str, int]
    questions: int
    samples: NotRequired[list[ShownSample]]
    """Responses to some of the questions, evenly spread, where any are asked for."""


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items, evenly spread over the list; 0 means all."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def evaluate(
    run: Run,
    params: Params,
    questions: Sequence[Question],
    *,
    temperature: float = 0.0,
    key: StageKey = StageKey.EVALUATE,
    samples: int = 0,
) -> Evaluation:
    """Samples one answer to every question and scores it; all processes call this together.

    `samples`: most responses that are returned as text.
    """
    if not questions:
        raise ValueError("evaluate: there is no question to evaluate on")
    params = run.sampler.load(params)
    size = even_size(len(questions), most=run.settings.evaluate.rows, shards=row_shards(run.mesh))
    right: dict[str, list[bool]] = defaultdict(list)
    right_by_set: dict[str, list[bool]] = defaultdict(list)
    shown = set(spread(range(len(questions)), samples)) if samples else set()
    texts: list[ShownSample] = []
    rewards: list[float] = []
    tokens: list[int] = []
    endings: Counter[str] = Counter()
    for batch in padded_batches(questions, size=size):
        watchdog.beat()
        trajectory = run.sampler.sample(
            params,
            stage_key(run.settings, key),
            batch.local_items,
            temperature=temperature,
            first_row=batch.start,
        )
        scores = score_rows(run, trajectory, batch.local_rows)
        for question, correct in zip(batch.items, scores.right_B, strict=True):
            right[question.kind].append(bool(correct))
            right_by_set[question.source].append(bool(correct))
        for b, question in enumerate(batch.items):
            if batch.start + b in shown:
                texts.append(_sample(run, trajectory, b, question, scores.reward_B[b]))
        rewards += scores.reward_B.tolist()
        tokens += response_mask(trajectory.source_BT).sum(1)[: len(batch.items)].tolist()
        endings.update(Status(int(x)).name for x in trajectory.status_B[: len(batch.items)])
    report_condensing(run.environment.take_counts())
    hidden = [x for kind, values in right.items() if kind.startswith("hidden") for x in values]
    evaluation = Evaluation(
        accuracy=float(np.mean([x for values in right.values() for x in values])),
        accuracy_by_kind=_means(right),
        reward=float(np.mean(rewards)),
        tokens=float(np.mean(tokens)),
        endings=dict(endings),
        questions=len(questions),
    )
    if hidden:
        evaluation["hidden"] = float(np.mean(hidden))
    if 1 < len(right_by_set) <= MOST_SETS:
        evaluation["accuracy_by_set"] = _means(right_by_set)
    if samples:
        evaluation["samples"] = texts
    return evaluation


def _means(groups: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in sorted(groups.items())}


def _sample(
    run: Run, trajectory: Trajectory, b: int, question: Question, reward: float
) -> ShownSample:
    return ShownSample(
        question_id=question.id,
        question=question.question,
        answers=list(question.answers),
        row=0,
        status=Status(int(trajectory.status_B[b])).name,
        reward=float(reward),
        segments=[
            SampleSegment(source=each.source.name, step=each.step, text=each.text)
            for each in segments(run.tokens, trajectory, b)
        ],
    )
