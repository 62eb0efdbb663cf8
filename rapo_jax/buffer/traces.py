"""From an off-policy agent's trajectories to the buffer's items (paper 4.1.1, steps 1 to 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rapo_jax.buffer.keys import key_text

UNITS = ("step", "trajectory")


class AgentTrajectory(NamedTuple):
    """One trajectory of an off-policy agent; `steps` are its step traces, results included."""

    question_id: str
    question: str
    steps: list[str]
    reward: float
    origin: str


class StepTrace(NamedTuple):
    """What the buffer remembers of one step: the state before it, and the step trace itself."""

    key: str
    value: str
    reward: float
    question_id: str
    step: int
    origin: str


def group_by_question(traces: Sequence[AgentTrajectory]) -> dict[str, list[AgentTrajectory]]:
    """Traces of each question, questions and traces in order of first appearance."""
    grouped: dict[str, list[AgentTrajectory]] = {}
    for trace in traces:
        grouped.setdefault(trace.question_id, []).append(trace)
    return grouped


def best_of(
    trajectories_by_question: Mapping[str, Sequence[AgentTrajectory]], keep: int
) -> dict[str, list[AgentTrajectory]]:
    """Reward-aware filter: the `keep` highest rewards of each question, ties in sampling order."""
    if keep < 1:
        raise ValueError(f"buffer.keep={keep}: keep at least 1 trajectory for each question")
    for question_id, traces in trajectories_by_question.items():
        for trace in traces:
            if not math.isfinite(trace.reward):
                raise ValueError(
                    f"reward={trace.reward} of a trace of question {question_id!r}: "
                    "score every trajectory before building the buffer"
                )
    return {
        question_id: sorted(traces, key=lambda trace: -trace.reward)[:keep]
        for question_id, traces in trajectories_by_question.items()
    }


def split(
    trace: AgentTrajectory, *, unit: str, include_answers: bool, mask: str, max_chars: int
) -> list[StepTrace]:
    """Items of one trajectory.

    unit 'step': item t has the key of S_<t and the value s_t. unit 'trajectory' (the paper's
    ablation w/ TO): one item, keyed by the question alone, whose value is every step.
    `include_answers=False` leaves answer steps out of the values. Blank values are left out too:
    nothing would be retrieved.
    """
    if unit not in UNITS:
        raise ValueError(f"buffer.unit={unit!r}: choose one of {', '.join(UNITS)}")
    kept = [
        (t, step)
        for t, step in enumerate(trace.steps)
        if step.strip() and (include_answers or "</answer>" not in step)
    ]
    if unit == "trajectory":
        kept = [(0, "".join(step for _, step in kept))] if kept else []
    return [
        StepTrace(
            key=key_text(trace.question, "".join(trace.steps[:t]), mask=mask, max_chars=max_chars),
            value=step,
            reward=trace.reward,
            question_id=trace.question_id,
            step=t,
            origin=trace.origin,
        )
        for t, step in kept
    ]


def make_items(
    traces: Sequence[AgentTrajectory],
    *,
    keep: int,
    unit: str,
    include_answers: bool,
    mask: str,
    max_chars: int,
) -> list[StepTrace]:
    """Filter and split: the items of a buffer, whose keys an encoder may be fitted on."""
    return [
        item
        for kept in best_of(group_by_question(traces), keep).values()
        for trace in kept
        for item in split(
            trace, unit=unit, include_answers=include_answers, mask=mask, max_chars=max_chars
        )
    ]
