"""Scores of a rollout batch and its metrics: rewards, lengths, tool calls, retrieval."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rapo_jax.distributed import allgather_json, allgather_rows
from rapo_jax.method.calibrate import Calibration
from rapo_jax.method.tape import response_mask
from rapo_jax.run.run import Run
from rapo_jax.sampling.tapes import response_text, segments, text_without_retrieved
from rapo_jax.tasks import Question, failure_kind, is_correct
from rapo_jax.text.protocol import CALLS
from rapo_jax.text.tokens import Tokens
from rapo_jax.types import Source, Status, Trajectory

ORIGIN = "buffer/origin/"
EXAMPLE_CHARS = 200
"""Shown of a response's beginning and of its end."""
FAILURES = ("error", "crashed", "empty", "flooded")
"""Outcomes of tool calls that are counted as errors."""


class RowScores(NamedTuple):
    """Of every row: outcome reward (float64), whether right, why its format is bad ('' if good)."""

    reward_B: np.ndarray
    right_B: np.ndarray
    failure_B: np.ndarray


def score_rows(
    run: Run, trajectory: Trajectory, local_rows: Iterable[tuple[int, Question]]
) -> RowScores:
    """Scores the responses of this process's rows; returns those of all processes, in order."""
    metric, reward = run.settings.task.metric, run.reward
    user_tools, answers = run.tokens.user_tools, run.tokens.protocol.answers
    scores = []
    for b, question in local_rows:
        text = response_text(run.tokens, trajectory, b)
        gold = question.answers
        right = is_correct(text, gold, metric=metric, user_tools=user_tools, answers=answers)
        failure = failure_kind(text, user_tools, answers)
        scores.append((float(reward(text, gold)), bool(right), failure))
    rewards, rights, failures = zip(*allgather_rows(scores), strict=True)
    return RowScores(np.array(rewards), np.array(rights), np.array(failures))


def common_failure(tokens: Tokens, trajectory: Trajectory, scores: RowScores) -> str:
    """A warning where all rows have one reward and their formats are bad for one reason; else ''.

    All outcome advantages of such a batch are 0: little or nothing can be learned from it.
    """
    failures = np.unique(scores.failure_B)
    if len(failures) > 1 or not failures[0] or np.ptp(scores.reward_B):
        return ""
    cut = float(np.mean(trajectory.status_B == Status.OUT_OF_TOKENS))
    if cut > 0.5:
        remedy = "most are cut off at a token limit: raise rollout.step_tokens and max_tokens"
    elif "think" in failures[0]:
        remedy = "set the template's switches (prompt.template_arguments), or use a cold start"
    else:
        remedy = "show the protocol in prompt.system, or use a cold start"
    text = text_without_retrieved(segments(tokens, trajectory, 0))
    if len(text) > 2 * EXAMPLE_CHARS:
        text = f"{text[:EXAMPLE_CHARS]} … {text[-EXAMPLE_CHARS:]}"
    return (
        f"all {len(scores.reward_B)} responses have the reward {scores.reward_B[0]:g}, for the "
        f"same reason: {failures[0]}; {remedy}; for example {text!r}"
    )


def shared_counts(local_counts: Mapping[str, float]) -> dict[str, float]:
    """Counts of all processes together; `seconds` and `waited` stay those of this one."""
    parts: list[dict[str, float]] = allgather_json(dict(local_counts))
    if len(parts) == 1:
        return parts[0]
    names = {name: None for counts in parts for name in counts}
    counts = {name: sum(each.get(name, 0) for each in parts) for name in names}
    return counts | {name: local_counts[name] for name in ("seconds", "waited")}


def rollout_metrics(
    trajectory: Trajectory, scores: RowScores, hybrid_B: np.ndarray, calibration: Calibration
) -> dict[str, float]:
    """Means over the rows of a rollout batch: rewards, entropy, tokens."""
    reward_B = scores.reward_B.astype(np.float32)
    policy_BT = trajectory.source_BT == Source.POLICY

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else 0.0

    return {
        "reward/mean": mean(reward_B),
        "reward/on_policy": mean(reward_B[~hybrid_B]),
        "reward/hybrid": mean(reward_B[hybrid_B]),
        "reward/accuracy": mean(scores.right_B),
        "reward/format_bad": mean(scores.failure_B != ""),
        "reward/retrieval": mean(calibration.retrieval_reward_B[hybrid_B]),
        "entropy/policy": float(trajectory.entropy_BT[policy_BT].mean()),
        "rollout/tokens": mean(response_mask(trajectory.source_BT).sum(1)),
        "rollout/policy_tokens": mean(policy_BT.sum(1)),
        "rollout/retrieved_share": mean(calibration.retrieved_share_B),
        **branching_metrics(trajectory),
    }


def branching_metrics(trajectory: Trajectory) -> dict[str, float]:
    """Metrics of branching: tokens and calls saved by shared prefixes; forks and restarts.

    `rollout/policy_tokens` counts a shared prefix in every row that has it: what was sampled is
    `rollout/policy_tokens` - `rollout/saved_tokens`. `rollout/tool_calls` counts calls that were
    made.
    """
    if (forks := trajectory.forks) is None:
        return {}
    row_B = np.arange(len(trajectory.length_B))
    shared_BT = np.arange(trajectory.source_BT.shape[1]) < forks.tokens_B[:, None]
    saved_BT = shared_BT & (trajectory.source_BT == Source.POLICY)
    forked_B = forks.tokens_B > 0
    return {
        "rollout/saved_tokens": float(saved_BT.sum(1).mean()),
        "rollout/saved_calls": float(forks.calls_B.mean()),
        "rollout/forks": float(forked_B.sum()),
        "rollout/restarts": float((~forked_B & (row_B % forks.tree_rows > 0)).sum()),
    }


def host_metrics(
    counts: Mapping[str, float], *, rows: int, user_tools: Sequence[str]
) -> dict[str, float]:
    """Tool calls and retrievals of the `rows` rows that a step sampled, from the host's counts."""

    def count(name: str) -> float:
        return counts.get(name, 0)

    of_user_tools = {}
    for name in user_tools:
        of_user_tools[f"tools/{name}"] = count(name) / rows
        of_user_tools[f"tools/{name}/failed"] = float(count(f"failed/{name}"))
    queries = max(count("buffer/queries"), 1)
    return {
        "rollout/tool_calls": sum(count(name) for name in (*CALLS, *user_tools)) / rows,
        "tools/search": count("search") / rows,
        "tools/python": count("python") / rows,
        **of_user_tools,
        "tools/errors": float(sum(count(f"outcome/{name}") for name in FAILURES)),
        "tools/timeouts": float(count("outcome/timeout")),
        "buffer/count": float(count("buffer/hits")),
        "buffer/hit_rate": count("buffer/hits") / queries,
        "buffer/similarity": count("buffer/similarity_sum") / max(count("buffer/hits"), 1),
        "buffer/same_question": count("buffer/same_question") / queries,
        **{name: float(x) for name, x in counts.items() if name.startswith(ORIGIN)},
    }


class Laps:
    """Wall seconds of the phases of a step, each added up: a phase begins where another ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._began
        self._began = now


def time_metrics(
    seconds: Mapping[str, float], counts: Mapping[str, float], *, scoring_seconds: float
) -> dict[str, float]:
    """Seconds of a step by phase: those of the rollout without the host's work, and this apart."""
    waited = counts["waited"]
    host = counts["seconds"] - waited + scoring_seconds
    return {
        "time/reshard": seconds["reshard"],
        "time/rollout": seconds["rollout"] - host,
        "time/waiting": waited,
        "time/host": host,
        "time/update": seconds["update"],
    }


def schedule_metrics(counts: Mapping[str, int], *, rows: int) -> dict[str, float]:
    """Metrics of slot usage of a step's rollouts, from the `Sampler.counts` of its batches.

    The step sampled `rows` rows, those that were replaced included; a prefix that rows share counts
    once. Metrics named time/... change from run to run with the time that tools take.
    """
    slot_ticks = max(counts["slot_ticks"], 1)
    return {
        "rollout/sampled_rows": float(rows),
        "rollout/sampled_tokens": float(counts["sampled"]),
        "rollout/absorbed_tokens": counts["absorbed"] / rows,
        "time/slots_used": counts["sampled"] / slot_ticks,
        "time/slots_waiting": counts["waiting"] / slot_ticks,
        "time/host_calls": float(counts["host_calls"]),
    }


def cpu_seconds() -> float:
    """CPU-seconds of this process and its finished children."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)
