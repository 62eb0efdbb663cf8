"""Where the trajectories of a Step-Trace Buffer come from: agents that are sampled, and files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rapo_jax.buffer.agents import run_agents
from rapo_jax.buffer.conversations import converse
from rapo_jax.buffer.endpoint import Budget, Endpoint
from rapo_jax.buffer.sources import Imported, read_sources
from rapo_jax.buffer.trajectories import UNSCORED, AgentTrajectory
from rapo_jax.buffer.trajectory_file import TrajectoryFile
from rapo_jax.stages.buffer_policies import SHOW_EVERY_S, sample_policies
from rapo_jax.tasks import Question
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.protocol import Segment
from rapo_jax.train.metrics import Progress
from rapo_jax.train.run import Run
from rapo_jax.train.tapes import steps_without_retrieved

Trajectories = Sequence[AgentTrajectory]

SCRIPTED_AT_A_TIME = 512
"""Questions; a trajectory does not depend on what else is sampled with it."""


class Sampling(NamedTuple):
    """What an agent gave, and what the manifest says of it."""

    trajectories: list[AgentTrajectory]
    about: dict[str, Any]


def sample_agents(run: Run) -> Callable[[], tuple[list[AgentTrajectory], dict[str, Any]]]:
    """Asks the buffer's own agents, in their order.

    All processes sample policies together, here; what is returned asks the others, scores all
    trajectories and is for one process alone. It gives them and what the manifest is to say.
    """
    b = run.settings.buffer
    questions = load_questions(run.questions["expert"])[: b.questions]
    for name in b.agents:
        if name != "none":
            print(
                f"[buffer] {len(questions)} questions x {b.samples} trajectories by the {name} "
                "agent",
                flush=True,
            )
    policies = sample_policies(run, questions) if "checkpoint" in b.agents else []

    def rest() -> tuple[list[AgentTrajectory], dict[str, Any]]:
        found = [AGENTS[name](run, questions, policies) for name in b.agents]
        answers = {question.id: question.answers for question in questions}
        scored = [
            trajectory._replace(
                reward=run.reward("".join(trajectory.steps), answers[trajectory.question_id])
            )
            for sampling in found
            for trajectory in sampling.trajectories
        ]
        return scored, {name: x for sampling in found for name, x in sampling.about.items()}

    return rest


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
        user_tools=run.tokens.user_tools,
    )
    for report in imported.reports:
        print(f"[buffer] {report.summary()}", flush=True)
    imported.usable_step_traces(
        unit=s.retrieval.unit, include_answers=True
    )  # refuses before sampling
    return imported


def _unscored(
    question: Question, sample: int, row: Sequence[Segment], origin: str
) -> AgentTrajectory:
    steps = steps_without_retrieved(row)
    return AgentTrajectory(question.id, question.question, steps, UNSCORED, origin, sample)


def _scripted(run: Run, questions: Sequence[Question], policies: Trajectories) -> Sampling:
    s = run.settings
    expert = run.task.expert(run.world, error=s.buffer.expert_error)
    progress = Progress("buffer", total=len(questions), done=0, every_s=SHOW_EVERY_S)
    trajectories: list[AgentTrajectory] = []
    for start in range(0, len(questions), SCRIPTED_AT_A_TIME):
        some = questions[start : start + SCRIPTED_AT_A_TIME]
        groups = run_agents(
            expert,
            some,
            run.tools,
            max_calls=s.rollout.max_calls,
            samples=s.buffer.samples,
            rng_seed=s.seed,
        )
        trajectories += [
            _unscored(question, sample, row, "scripted")
            for question, group in zip(some, groups, strict=True)
            for sample, row in enumerate(group)
        ]
        if len(some) < len(questions):
            progress.show(start + len(some))
    return Sampling(trajectories, {})


def _policies(run: Run, questions: Sequence[Question], policies: Trajectories) -> Sampling:
    return Sampling(list(policies), {})


def _endpoint(run: Run, questions: Sequence[Question], policies: Trajectories) -> Sampling:
    """A chat endpoint; a cap on spending cuts the samples of all questions alike."""
    s, n = run.settings, run.settings.buffer.endpoint
    folder, origin = run.buffer / "agents", f"endpoint:{n.model}"
    files = TrajectoryFile(folder, f"endpoint-{zlib.crc32(n.model.encode()):08x}")
    asked = {question.id: question.question for question in questions}
    kept = [
        trajectory
        for trajectory in files.begin(
            {
                "origin": origin,
                "temperature": n.temperature,
                "step_tokens": n.step_tokens,
                "max_calls": s.rollout.max_calls,
                "system": run.system,
            }
        )
        if asked.get(trajectory.question_id) == trajectory.question
        and trajectory.sample < s.buffer.samples
    ]
    there = {(trajectory.question_id, trajectory.sample) for trajectory in kept}
    wanted = [
        (question, sample)
        for sample in range(s.buffer.samples)
        for question in questions
        if (question.id, sample) not in there
    ]
    total = len(questions) * s.buffer.samples
    if there:
        print(f"[buffer] {len(there)} of {total} trajectories are there; going on", flush=True)
    budget = Budget(
        folder / "spent.jsonl", max_calls=n.max_calls_total, max_tokens=n.max_tokens_total
    )
    progress = Progress("buffer: endpoint", total=total, done=len(there), every_s=SHOW_EVERY_S)
    new: list[AgentTrajectory] = []

    def keep(question: Question, sample: int, segments: list[Segment]) -> None:
        trajectory = _unscored(question, sample, segments, origin)
        files.append([trajectory])
        new.append(trajectory)
        progress.show(len(there) + len(new), calls=budget.calls, tokens=budget.tokens)

    endpoint = Endpoint(n, budget, user_tools=run.tokens.user_tools)
    try:
        outcome = converse(
            endpoint,
            wanted,
            run.tools,
            system=run.system,
            max_calls=s.rollout.max_calls,
            concurrency=n.concurrency,
            keep=keep,
        )
    finally:
        endpoint.close()
    if outcome.failed:
        print(
            f"[buffer] {outcome.failed} trajectories of the endpoint failed and are left out; the "
            f"last with: {outcome.problem}",
            flush=True,
        )
    if outcome.spent:
        print(
            f"[buffer] {outcome.spent}; going on with {len(kept) + len(new)} of {total} "
            f"trajectories (for more raise it and delete {run.buffer / 'done.json'})",
            flush=True,
        )
    place = {question.id: i for i, question in enumerate(questions)}
    trajectories = sorted(kept + new, key=lambda each: (place[each.question_id], each.sample))
    about = {
        "model": n.model,
        "trajectories": len(trajectories),
        "wanted": total,
        "failed": outcome.failed,
        "calls": budget.calls,
        "tokens": budget.tokens,
        "stopped": outcome.spent,
    }
    return Sampling(trajectories, {"endpoint": about})


def _nobody(run: Run, questions: Sequence[Question], policies: Trajectories) -> Sampling:
    """No agent: buffer.files alone fill the buffer."""
    return Sampling([], {})


AGENTS = {
    "scripted": _scripted,
    "checkpoint": _policies,
    "endpoint": _endpoint,
    "none": _nobody,
}
