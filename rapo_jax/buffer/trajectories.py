"""Trajectories of off-policy agents, and the step traces they are split into (paper 4.1.1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rapo_jax.buffer.keys import key_text
from rapo_jax.io.files import Json

UNITS = ("step", "trajectory")

HISTORY_MARGIN = 16
"""A key reads up to HISTORY_MARGIN * `max_chars` of a history, because masks shorten texts."""

UNSCORED = math.nan
"""The reward of a trajectory that has not been scored yet."""


class AgentTrajectory(NamedTuple):
    """One trajectory of an off-policy agent; `steps` are its step traces, results included."""

    question_id: str
    question: str
    steps: list[str]
    reward: float
    origin: str
    """The agent or the file it comes from."""
    sample: int = 0
    """Its number among the agent's trajectories of this question."""


class StepTrace(NamedTuple):
    """One step in the buffer: the text of the state before it as `key`, the step as `value`."""

    key: str
    value: str
    reward: float
    question_id: str
    step: int
    origin: str


class Splitting(NamedTuple):
    """How trajectories become step traces.

    unit 'step': step t has the key of S_<t and the value s_t. unit 'trajectory' (the paper's
    ablation w/ TO): one trace a trajectory, keyed by the question only, whose value is every step.
    """

    unit: str
    include_answers: bool
    """False leaves answer steps out of the values."""
    mask: str
    max_chars: int
    """`mask` and `max_chars` as for `key_text`."""


def best_of(
    trajectories: Sequence[AgentTrajectory], keep: int, *, least: float
) -> list[AgentTrajectory]:
    """Reward-aware filter: the `keep` highest rewards of each question, ties in sampling order.

    Those below `least` are left out. Questions are in the order of their first trajectory.
    """
    if keep < 1:
        raise ValueError(f"buffer.keep={keep}: keep at least 1 trajectory for each question")
    by_question: dict[str, list[AgentTrajectory]] = {}
    for trajectory in trajectories:
        if not math.isfinite(trajectory.reward):
            raise ValueError(
                f"reward={trajectory.reward} of a trajectory of question "
                f"{trajectory.question_id!r}: score every trajectory before building the buffer"
            )
        by_question.setdefault(trajectory.question_id, []).append(trajectory)
    return [
        trajectory
        for group in by_question.values()
        for trajectory in sorted(group, key=lambda trajectory: -trajectory.reward)[:keep]
        if trajectory.reward >= least
    ]


def split(trajectory: AgentTrajectory, how: Splitting) -> list[StepTrace]:
    """Step traces of one trajectory; blank steps are left out, and the others keep their number."""
    if how.unit not in UNITS:
        raise ValueError(f"retrieval.unit={how.unit!r}: choose one of {', '.join(UNITS)}")
    values = [
        (t, step)
        for t, step in enumerate(trajectory.steps)
        if step.strip() and (how.include_answers or "</answer>" not in step)
    ]
    if how.unit == "trajectory":
        values = [(0, "".join(step for _, step in values))] if values else []
    histories = enumerate(_histories(trajectory.steps, HISTORY_MARGIN * how.max_chars))
    return [
        StepTrace(
            key=key_text(
                trajectory.question,
                next(history for number, history in histories if number == t),
                mask=how.mask,
                max_chars=how.max_chars,
            ),
            value=value,
            reward=trajectory.reward,
            question_id=trajectory.question_id,
            step=t,
            origin=trajectory.origin,
        )
        for t, value in values
    ]


def _histories(steps: Sequence[str], chars: int) -> Iterator[str]:
    """The text before each step: the last steps of it with `chars` characters or more."""
    first, size = 0, 0
    for t, step in enumerate(steps):
        while size - len(steps[first]) >= chars:
            size -= len(steps[first])
            first += 1
        yield "".join(steps[first:t])
        size += len(step)


def split_all(trajectories: Sequence[AgentTrajectory], how: Splitting) -> list[StepTrace]:
    """Step traces of all trajectories, in their order."""
    return [step_trace for trajectory in trajectories for step_trace in split(trajectory, how)]


def filter_counts(
    sampled: Sequence[AgentTrajectory], kept: Sequence[AgentTrajectory]
) -> dict[str, Json]:
    """What `best_of` kept of the sampled trajectories, for the manifest."""
    return {
        "trajectories_sampled": len(sampled),
        "trajectories_kept": len(kept),
        "trajectories_kept_by_origin": dict(Counter(trajectory.origin for trajectory in kept)),
        "mean_reward_sampled": _mean_reward(sampled),
        "mean_reward_kept": _mean_reward(kept),
    }


def _mean_reward(trajectories: Sequence[AgentTrajectory]) -> float:
    rewards = [trajectory.reward for trajectory in trajectories]
    return float(np.mean(rewards)) if rewards else 0.0
