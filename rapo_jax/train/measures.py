"""What a rollout batch looked like, as metrics."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rapo_jax.method.calibrate import Calibration
from rapo_jax.tasks import Question, failure_kind, is_correct
from rapo_jax.tasks.schema import Score
from rapo_jax.text.protocol import CALLS
from rapo_jax.text.tokens import Tokens
from rapo_jax.train.distributed import allgather_json
from rapo_jax.train.tapes import segments, text_without_retrieved
from rapo_jax.types import Source, Trajectory


class Judged(NamedTuple):
    """What became of every row: outcome reward, a right answer or not, a bad format or not."""

    reward_B: np.ndarray
    right_B: np.ndarray
    malformed_B: np.ndarray


def judge(
    tokens: Tokens,
    trajectory: Trajectory,
    row_questions: Sequence[Question],
    *,
    metric: str,
    reward: Score,
) -> Judged:
    """Judges the rows of this process, those of `row_questions`, and hears from the others."""
    first_row = jax.process_index() * len(row_questions)
    own = []
    for b, question in enumerate(row_questions, first_row):
        text, gold = text_without_retrieved(segments(tokens, trajectory, b)), question.answers
        own.append(
            (
                float(reward(text, gold)),
                bool(is_correct(text, gold, metric=metric, user_tools=tokens.user_tools)),
                bool(failure_kind(text, tokens.user_tools)),
            )
        )
    rewards, right, malformed = zip(
        *[row for part in allgather_json(own) for row in part], strict=True
    )
    return Judged(np.array(rewards, np.float32), np.array(right), np.array(malformed))


def shared_counts(own: Mapping[str, float]) -> dict[str, float]:
    """Counts of all processes together; `seconds` stay those of this one."""
    everyones = allgather_json(dict(own))
    if len(everyones) == 1:
        return everyones[0]
    found = {
        name: sum(counts.get(name, 0) for counts in everyones)
        for name in {name: None for counts in everyones for name in counts}
    }
    if "buffer/similarity_mean" in found:
        found["buffer/similarity_mean"] = sum(
            counts.get("buffer/similarity_mean", 0) * counts.get("buffer/hits", 0)
            for counts in everyones
        ) / max(found["buffer/hits"], 1)
    return found | {"seconds": own.get("seconds", 0.0)}


def rollout_metrics(
    trajectory: Trajectory, judged: Judged, hybrid_B: np.ndarray, found: Calibration
) -> dict[str, float]:
    """What a rollout batch looked like."""
    reward_B = judged.reward_B
    source_BT = trajectory.source_BT
    policy_BT = source_BT == Source.POLICY
    response_B = ((source_BT != Source.PAD) & (source_BT != Source.PROMPT)).sum(1)

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else 0.0

    return {
        "reward/mean": mean(reward_B),
        "reward/on_policy": mean(reward_B[~hybrid_B]),
        "reward/hybrid": mean(reward_B[hybrid_B]),
        "reward/accuracy": mean(judged.right_B),
        "reward/format_bad": mean(judged.malformed_B),
        "reward/retrieval": mean(found.retrieval_reward_B[hybrid_B]),
        "entropy/policy": float(trajectory.entropy_BT[policy_BT].mean()),
        "rollout/tokens": mean(response_B),
        "rollout/policy_tokens": mean(policy_BT.sum(1)),
        "rollout/retrieved_share": mean(found.retrieved_share_B),
    }


def host_metrics(
    counts: dict[str, float], found: Calibration, own: Sequence[str]
) -> dict[str, float]:
    """What the world was asked in a rollout batch; `own` are the tags of own tools."""
    rows_count = len(found.retrieved_share_B)
    calls = sum(counts.get(name, 0) for name in (*CALLS, *own))
    of_own = {}
    for name in own:
        of_own[f"tools/{name}"] = counts.get(name, 0) / rows_count
        of_own[f"tools/{name}/failed"] = float(counts.get(f"failed/{name}", 0))
    origin = "buffer/origin/"
    by_origin = {
        f"buffer/origin/{name.removeprefix(origin)}": float(count)
        for name, count in counts.items()
        if name.startswith(origin)
    }
    queries = counts.get("buffer/queries", 0)
    bad = ("error", "crashed", "empty", "flooded")
    return {
        "rollout/tool_calls": calls / rows_count,
        "tools/search": counts.get("search", 0) / rows_count,
        "tools/python": counts.get("python", 0) / rows_count,
        **of_own,
        "tools/errors": float(sum(counts.get(f"outcome/{name}", 0) for name in bad)),
        "tools/timeouts": float(counts.get("outcome/timeout", 0)),
        "buffer/count": float(counts.get("buffer/hits", 0)),
        "buffer/hit_rate": counts.get("buffer/hits", 0) / max(queries, 1),
        "buffer/similarity": counts.get("buffer/similarity_mean", 0.0),
        "buffer/same_question": counts.get("buffer/same_question", 0) / max(queries, 1),
        **by_origin,
    }


def cpu_seconds() -> float:
    """CPU-seconds of this process and its finished children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
