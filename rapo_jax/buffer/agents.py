"""Rollouts of off-policy agents through the real tools (paper 4.1.1).

An agent sees text alone: the question and the history after the prompt, observations and retrieved
traces with their tags included. The loop is that of the policy's own rollout: a step ends with a
call or an answer, a call is followed by its observation, a limit ends the trajectory as it stands.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rapo_jax.tasks.schema import Agent, Question
from rapo_jax.text.protocol import (
    Segment,
    parse_step,
    render_result,
    render_retrieved,
    user_tool_names,
)
from rapo_jax.tools import Tool
from rapo_jax.types import Source

Inject = Callable[[str, np.random.Generator], str | None]
"""(history, random numbers) -> a step trace to retrieve at this boundary, or None."""


@dataclass
class _Rollout:
    """One trajectory on its way."""

    question: Question
    rng: np.random.Generator
    segments: list[Segment] = field(default_factory=list)
    history: str = ""
    step: int = 0
    calls: int = 0
    pending: tuple[str, str] | None = None
    """Tool and content of the call that waits for its observation."""
    finished: bool = False

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
    Each has its own random numbers from (`rng_seed`, question id, sample): a trajectory does not
    depend on what else is in the batch. A policy step and the observation it caused are one step,
    a trace from `inject` is a step of its own; it may come at every boundary but the first, and
    never twice in a row (Algorithm 1).
    """
    groups = [
        [_Rollout(question, _own_rng(rng_seed, question, sample)) for sample in range(samples)]
        for question in questions
    ]
    _advance(agent, [r for group in groups for r in group], tools, max_calls, inject)
    return [[rollout.segments for rollout in group] for group in groups]


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
    rollout = _Rollout(question, rng)
    _advance(agent, [rollout], tools, max_calls, inject)
    return rollout.segments


def response_text(segments: Sequence[Segment]) -> str:
    """The whole response as one text, as `outcome_reward` judges it."""
    return "".join(segment.text for segment in segments)


def _own_rng(rng_seed: int, question: Question, sample: int) -> np.random.Generator:
    return np.random.default_rng([rng_seed, zlib.crc32(question.id.encode()), sample])


def _advance(
    agent: Agent,
    rollouts: Sequence[_Rollout],
    tools: Mapping[str, Tool],
    max_calls: int,
    inject: Inject | None,
) -> None:
    running = list(rollouts)
    while running:
        for rollout in running:
            _think(agent, rollout, tools, max_calls, inject)
        _act([rollout for rollout in running if rollout.pending], tools)
        running = [rollout for rollout in running if not rollout.finished]


def _think(
    agent: Agent,
    rollout: _Rollout,
    tools: Mapping[str, Tool],
    max_calls: int,
    inject: Inject | None,
) -> None:
    """One boundary: perhaps a retrieved trace, then a step of the agent."""
    if inject is not None and rollout.step > 0:
        trace = inject(rollout.history, rollout.rng)
        if trace is not None:
            rollout.append(Source.RETRIEVED, render_retrieved(trace))
            rollout.step += 1
    text = agent(rollout.question.question, rollout.history, rollout.rng)
    rollout.append(Source.POLICY, text)
    call = parse_step(text, user_tool_names(tools))
    if call.kind in tools and rollout.calls < max_calls:
        rollout.pending = (call.kind, call.content)
    else:
        rollout.finished = True


def _act(waiting: Sequence[_Rollout], tools: Mapping[str, Tool]) -> None:
    """Serves all waiting calls, one batch a tool."""
    for name, tool in tools.items():
        asking = [r for r in waiting if r.pending and r.pending[0] == name]
        if not asking:
            continue
        observations = tool([r.pending[1] for r in asking if r.pending])
        for rollout, observation in zip(asking, observations, strict=True):
            rollout.append(Source.TOOL, render_result(observation.text, user_tool_names(tools)))
            rollout.pending = None
            rollout.calls += 1
            rollout.step += 1
