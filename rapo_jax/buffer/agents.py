"""Rollouts of off-policy agents through the real tools (paper 4.1.1).

An agent reads text only: the question and the history after the prompt, observations and retrieved
traces with their tags included. The loop is that of the policy's rollout: a step ends with a call
or an answer, a call is followed by its observation, and a limit ends the trajectory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rapo_jax.tasks.schema import Agent, Question
from rapo_jax.text.protocol import (
    Segment,
    Step,
    parse_step,
    render_result,
    render_retrieved,
    user_tool_names,
)
from rapo_jax.tools.observation import Tool
from rapo_jax.types import Source

Inject = Callable[[str, np.random.Generator], str | None]
"""(history, random numbers) -> a step trace to retrieve at this boundary, or None."""


@dataclass
class _Running:
    """A trajectory that is being sampled."""

    question: Question
    rng: np.random.Generator
    segments: list[Segment] = field(default_factory=list)
    history: str = ""
    step: int = 0
    calls: int = 0

    def append(self, source: Source, text: str) -> None:
        self.segments.append(Segment(source, self.step, text))
        self.history += text


def run_agents(
    agent: Agent,
    questions: Sequence[Question],
    tools: Mapping[str, Tool],
    *,
    max_calls: int,
    samples: int,
    rng_seed: int,
    inject: Inject | None = None,
) -> list[list[list[Segment]]]:
    """Samples `samples` trajectories a question: result[question][sample] is a list of segments.

    All trajectories advance in lock-step, so that each tool is called once a step with a batch.
    Each has separate random numbers from (`rng_seed`, question id, sample): a trajectory does not
    depend on what else is in the batch. A policy step and the observation it caused are one step;
    a trace from `inject` is a separate step, possible at every boundary but the first, and never
    twice in a row (Algorithm 1).
    """
    groups = [
        [
            _Running(
                question,
                np.random.default_rng([rng_seed, zlib.crc32(question.id.encode()), sample]),
            )
            for sample in range(samples)
        ]
        for question in questions
    ]
    _finish(agent, [running for group in groups for running in group], tools, max_calls, inject)
    return [[running.segments for running in group] for group in groups]


def run_agent(
    agent: Agent,
    question: Question,
    tools: Mapping[str, Tool],
    *,
    max_calls: int,
    rng: np.random.Generator,
    inject: Inject | None = None,
) -> list[Segment]:
    """Samples one trajectory; see `run_agents`."""
    running = _Running(question, rng)
    _finish(agent, [running], tools, max_calls, inject)
    return running.segments


def _finish(
    agent: Agent,
    unfinished: Sequence[_Running],
    tools: Mapping[str, Tool],
    max_calls: int,
    inject: Inject | None,
) -> None:
    user_tools = user_tool_names(tools)
    while unfinished:
        calls: list[tuple[_Running, Step]] = []
        for running in unfinished:
            if inject is not None and running.step > 0:
                trace = inject(running.history, running.rng)
                if trace is not None:
                    running.append(Source.RETRIEVED, render_retrieved(trace))
                    running.step += 1
            text = agent(running.question.question, running.history, running.rng)
            running.append(Source.POLICY, text)
            step = parse_step(text, user_tools)
            if step.kind in tools and running.calls < max_calls:
                calls.append((running, step))
        for name, tool in tools.items():
            callers = [(running, step.content) for running, step in calls if step.kind == name]
            observations = tool([content for _, content in callers]) if callers else []
            for (running, _), observation in zip(callers, observations, strict=True):
                running.append(Source.TOOL, render_result(observation.text, user_tools))
                running.calls += 1
                running.step += 1
        unfinished = [running for running, _ in calls]
