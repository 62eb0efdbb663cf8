"""Costs of runs: CPU-seconds and sampled tokens at each evaluation, and costs of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rapo_jax.io.jsonl import as_number
from rapo_jax.report.runs import RunFiles, series

ACCURACY = "heldout/accuracy"
"""Of all held-out questions; ACCURACY/SET of each set where there are several."""
STAGES = ("imitation", "rl")
"""Stages of a method's training, in their order; the cold start is the same for all methods."""
SAMPLED = "rollout/sampled_tokens"

Points = tuple[np.ndarray, np.ndarray]
Total = Callable[[RunFiles, str], Points | None]
"""Steps of a stage and what it has spent after each; None where the run did not record it."""


class StepCost(NamedTuple):
    """Means over the steps of a stage; None where the run did not record it."""

    tokens: float | None
    """Sampled by the policy, also in rollouts that the step did not train on."""
    calls: float | None
    """Tool calls."""
    cpu: float | None
    """CPU-seconds, compiling included."""
    seconds: float | None
    """Wall-clock seconds, compiling included."""


def cpu_total(run: RunFiles, stage: str) -> Points | None:
    """CPU-seconds of a stage's steps, without held-out evaluations."""
    spent = series(run, "cpu/total", stage)
    return spent if spent[0].size or not run.metrics.get(stage) else None


def token_total(run: RunFiles, stage: str) -> Points | None:
    """Sampled tokens of a stage; 0 where it has no rollouts."""
    steps, _ = series(run, "time/step", stage)
    if not _has_rollouts(run, stage):
        return steps, np.zeros(steps.size)
    at, tokens = series(run, SAMPLED, stage)
    return (at, np.cumsum(tokens)) if at.size == steps.size else None


def _has_rollouts(run: RunFiles, stage: str) -> bool:
    return any(key.startswith("rollout/") for row in run.metrics.get(stage, []) for key in row)


def cost_curve(run: RunFiles, total: Total, key: str = ACCURACY) -> Points:
    """Cost before each measurement of `key`, and the measured values.

    A step measures the policy that it starts with, so its own cost is not included. Both are empty
    where the cost is unknown.
    """
    x, y, before = [], [], 0.0
    for stage in STAGES:
        if (spent := total(run, stage)) is None:
            return np.empty(0), np.empty(0)
        steps, amounts = spent
        measured, values = series(run, key, stage)
        amounts = before + np.concatenate([[0.0], amounts])
        x.append(amounts[np.searchsorted(steps, measured)])
        y.append(values)
        before = amounts[-1]
    return np.concatenate(x), np.concatenate(y)


def cpu_curve(run: RunFiles, key: str = ACCURACY) -> Points:
    """`cost_curve` in CPU-seconds."""
    return cost_curve(run, cpu_total, key)


def token_curve(run: RunFiles, key: str = ACCURACY) -> Points:
    """`cost_curve` in sampled tokens."""
    return cost_curve(run, token_total, key)


def value_at(curve: Points, budget: float | None) -> float | None:
    """The value at cost `budget`, interpolated between measurements.

    A run that never spends so much keeps its last value.
    """
    x, y = curve
    return float(np.interp(budget, x, y)) if x.size and budget is not None else None


def cpu_seconds(run: RunFiles) -> float | None:
    """CPU-seconds of all steps, an imitation before RL included, without held-out evaluations."""
    stages = [series(run, "cpu/total", stage)[1] for stage in STAGES]
    known = [total[-1] for total in stages if total.size]
    return float(sum(known)) if known else None


def step_cost(run: RunFiles) -> StepCost:
    """Mean costs of a step of RL, or of an imitation that takes its place."""
    steps, seconds = series(run, "time/step")

    def mean(total: Points | None) -> float | None:
        return float(total[1][-1] / steps.size) if total is not None and steps.size else None

    return StepCost(
        tokens=mean(token_total(run, "rl")),
        calls=_calls(run),
        cpu=mean(cpu_total(run, "rl")),
        seconds=float(seconds.mean()) if steps.size else None,
    )


def _calls(run: RunFiles) -> float | None:
    """Tool calls of a step. Runs of older versions count those of each row that they trained on."""
    if not _has_rollouts(run, "rl"):
        return 0.0 if run.metrics.get("rl") else None
    _, calls = series(run, "rollout/tool_calls")
    _, sampled = series(run, "rollout/sampled_rows")
    if sampled.size and sampled.size == calls.size:
        return float((calls * sampled).mean())
    rollout = run.config.get("rollout")
    rollout = rollout if isinstance(rollout, Mapping) else {}
    questions, rows = (as_number(rollout.get(name)) for name in ("questions", "group_size"))
    if not calls.size or questions is None or rows is None:
        return None
    return float(calls.mean()) * questions * rows
