"""Greedy evaluation on held-out questions; nothing is ever retrieved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rapo_jax.tasks import Question, is_correct
from rapo_jax.train.distributed import allgather_json, local_part
from rapo_jax.train.run import Run
from rapo_jax.train.tapes import segments, text_without_retrieved
from rapo_jax.types import Params, Source, Status

T = TypeVar("T")


def spread(questions: Sequence[T], limit: int) -> list[T]:
    """At most `limit` questions, evenly spread over the list; 0 means all."""
    if not limit or limit >= len(questions):
        return list(questions)
    return [questions[i] for i in np.linspace(0, len(questions) - 1, limit).round().astype(int)]


def evaluate(
    run: Run, params: Params, questions: Sequence[Question], *, temperature: float = 0.0
) -> dict[str, Any]:
    """Pass@1 over `questions`: accuracy, by kind, mean reward, tokens, endings.

    `hidden` is the accuracy over the kinds named hidden..., which the cold start saw done badly;
    it is left out where there are none.
    """
    if not questions:
        raise ValueError("evaluate: there is no question to evaluate on")
    params = run.sampler.load(params)
    n_rows, metric, score = run.settings.evaluate.rows, run.settings.task.metric, run.reward
    right: dict[str, list[bool]] = defaultdict(list)
    rewards: list[float] = []
    tokens: list[int] = []
    endings: dict[str, int] = defaultdict(int)
    for start in range(0, len(questions), n_rows):
        some = list(questions[start : start + n_rows])
        padded = (some * n_rows)[:n_rows]  # one shape, one compilation
        trajectory = run.sampler.sample(
            params,
            jax.random.fold_in(jax.random.key(run.settings.seed), start),
            local_part(padded),
            group_size=1,
            n_hybrid=0,
            temperature=temperature,
        )
        response_BT = (trajectory.source_BT != Source.PAD) & (trajectory.source_BT != Source.PROMPT)
        judged = []
        for b in local_part(range(n_rows)):
            if b < len(some):
                text = text_without_retrieved(segments(run.tokens, trajectory, b))
                gold = some[b].answers
                judged.append(
                    (
                        bool(
                            is_correct(text, gold, metric=metric, user_tools=run.tokens.user_tools)
                        ),
                        float(score(text, gold)),
                    )
                )
        everyones = [each for part in allgather_json(judged) for each in part]
        for b, (question, (correct, reward)) in enumerate(zip(some, everyones, strict=True)):
            right[question.kind].append(correct)
            rewards.append(reward)
            tokens.append(int(response_BT[b].sum()))
            endings[Status(int(trajectory.status_B[b])).name] += 1
    run.environment.take_counts()
    everything = [x for kind in right.values() for x in kind]
    hidden = [x for kind, found in right.items() if kind.startswith("hidden") for x in found]
    return {
        "accuracy": float(np.mean(everything)),
        **({"hidden": float(np.mean(hidden))} if hidden else {}),
        "accuracy_by_kind": {kind: float(np.mean(x)) for kind, x in sorted(right.items())},
        "reward": float(np.mean(rewards)),
        "tokens": float(np.mean(tokens)),
        "endings": dict(endings),
        "questions": len(everything),
    }
