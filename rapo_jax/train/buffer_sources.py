"""Where the trajectories of a Step-Trace Buffer come from: an agent that is sampled, and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from rapo_jax.host.agents import run_agents
from rapo_jax.host.data import load_questions
from rapo_jax.host.memory.sources import Imported, read_sources
from rapo_jax.host.memory.traces import Trace
from rapo_jax.host.protocol import Segment
from rapo_jax.host.tasks import Question
from rapo_jax.train.distributed import own_part
from rapo_jax.train.tapes import own_steps, own_text, segments

if TYPE_CHECKING:
    from rapo_jax.train.run import Run


def sample_agent(run: Run) -> list[Trace]:
    """Trajectories of the buffer's own agent, with their outcome rewards."""
    s = run.settings
    questions = load_questions(run.questions["expert"])[: s.buffer.questions]
    if s.buffer.agent != "none":
        print(
            f"[buffer] {len(questions)} questions x {s.buffer.samples} trajectories by the "
            f"{s.buffer.agent} agent",
            flush=True,
        )
    return [
        Trace(
            q.id,
            q.question,
            own_steps(row),
            run.reward(own_text(row), q.answers),
            origin,
        )
        for q, group, origin in AGENTS[s.buffer.agent](run, questions)
        for row in group
    ]


def import_files(run: Run) -> Imported | None:
    """What buffer.files hold; None without files."""
    s = run.settings
    if not s.buffer.files:
        return None
    imported = read_sources(
        s.buffer.files,
        malformed=s.buffer.malformed,
        questions=[
            q for split in ("train", "expert") for q in load_questions(run.questions[split])
        ],
        score=run.reward,
        mask=s.retrieval.mask,
        max_chars=s.retrieval.max_chars,
        own=run.tokens.own,
    )
    for report in imported.reports:
        print(f"[buffer] {report.summary()}", flush=True)
    imported.step_items(unit=s.retrieval.unit, include_answers=True)  # refuses before sampling
    return imported


Sampled = list[tuple[Question, list[list[Segment]], str]]


def _scripted(run: Run, questions: Sequence[Question]) -> Sampled:
    s = run.settings
    groups = run_agents(
        run.task.expert(run.world, error=s.buffer.expert_error),
        questions,
        run.tools,
        max_calls=s.rollout.max_calls,
        samples=s.buffer.samples,
        rng_seed=s.seed,
    )
    return [(q, group, "scripted") for q, group in zip(questions, groups, strict=True)]


def _checkpoint(run: Run, questions: Sequence[Question]) -> Sampled:
    """A policy of this project, sampled on-policy by the same rollout program."""
    from rapo_jax.train.policy import load_policy

    s = run.settings
    params = run.sampler.load(load_policy(run, Path(s.buffer.checkpoint)))
    sampled: Sampled = []
    for start in range(0, len(questions), s.rollout.questions):
        some = list(questions[start : start + s.rollout.questions])
        padded = (some * s.rollout.questions)[: s.rollout.questions]
        trajectory = run.sampler.sample(
            params,
            jax.random.fold_in(jax.random.key(s.seed), start),
            own_part(padded),
            group_size=s.buffer.samples,
            n_hybrid=0,
            temperature=s.rollout.temperature,
        )
        for q, question in enumerate(some):
            rows = range(q * s.buffer.samples, (q + 1) * s.buffer.samples)
            group = [segments(run.tokens, trajectory, b) for b in rows]
            sampled.append((question, group, f"checkpoint:{s.buffer.checkpoint}"))
    return sampled


def _nobody(run: Run, questions: Sequence[Question]) -> Sampled:
    """No agent: buffer.files alone fill the buffer."""
    return []


AGENTS = {"scripted": _scripted, "checkpoint": _checkpoint, "none": _nobody}
