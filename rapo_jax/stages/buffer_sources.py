"""The sources of a Step-Trace Buffer: agents that are sampled, and files of trajectories."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

from rapo_jax.buffer.agents import run_agents
from rapo_jax.buffer.conversations import Outcome, converse
from rapo_jax.buffer.endpoint import Budget, Endpoint
from rapo_jax.buffer.sources import Imported, read_sources
from rapo_jax.buffer.trajectories import AgentTrajectory
from rapo_jax.buffer.trajectory_file import TrajectoryFile
from rapo_jax.distributed import Stopped
from rapo_jax.io import watchdog
from rapo_jax.io.files import Json
from rapo_jax.io.signals import stop_requested
from rapo_jax.run.keys import HostKey, agent_seed
from rapo_jax.run.metrics import Progress
from rapo_jax.run.run import Run
from rapo_jax.stages.buffer_policies import PolicySamples, sample_policies, unscored
from rapo_jax.tasks import Question
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.protocol import Segment

SCRIPTED_AT_A_TIME = 64
"""Questions; a trajectory does not depend on what else is sampled with it."""


class Sampling(NamedTuple):
    """Trajectories of one or more agents, and what the buffer's manifest records of them."""

    trajectories: list[AgentTrajectory]
    info: dict[str, Json]


def sample_agents(run: Run) -> Callable[[], Sampling]:
    """Samples the agents of `buffer.agent`, in their order.

    Policies are sampled here, by all processes together. The function that is returned samples the
    other agents and scores all trajectories; one process alone calls it.
    """
    b = run.settings.buffer
    questions = load_questions(run.questions[b.split])[: b.questions]
    for name in b.agents:
        if name != "none":
            print(
                f"[buffer] {len(questions)} questions x {b.samples} trajectories by the {name} "
                "agent",
                flush=True,
            )
    asked = "checkpoint" in b.agents
    policies = sample_policies(run, questions) if asked else PolicySamples([], {})

    def sample_others() -> Sampling:
        samplings = [AGENTS[name](run, questions, policies) for name in b.agents]
        answers = {question.id: question.answers for question in questions}
        scored = [
            each._replace(reward=run.reward("".join(each.steps), answers[each.question_id]))
            for sampling in samplings
            for each in sampling.trajectories
        ]
        return Sampling(scored, {k: v for sampling in samplings for k, v in sampling.info.items()})

    return sample_others


def import_files(run: Run) -> Imported | None:
    """The trajectories and step traces of buffer.files; None without files."""
    s = run.settings
    if not s.buffer.files:
        return None
    known = [q for split in ("train", "expert") for q in load_questions(run.questions[split])]
    try:
        imported = read_sources(
            s.buffer.files,
            malformed=s.buffer.malformed,
            questions=known,
            score=run.reward,
            mask=s.retrieval.mask,
            max_chars=s.retrieval.max_chars,
            user_tools=run.tokens.user_tools,
            most_records=s.buffer.file_records,
        )
    except ValueError as error:
        raise ValueError(f"buffer.files: {error}") from None
    for report in imported.reports:
        print(f"[buffer] {report.summary()}", flush=True)
    # before sampling, so that bad files are refused early
    imported.usable_step_traces(unit=s.retrieval.unit, include_answers=True)
    return imported


def _scripted(run: Run, questions: Sequence[Question]) -> Sampling:
    s = run.settings
    expert = run.task.expert(run.world, error=s.buffer.expert_error)
    progress = Progress("buffer", total=len(questions), done=0)
    trajectories: list[AgentTrajectory] = []
    for start in range(0, len(questions), SCRIPTED_AT_A_TIME):
        if stop_requested():
            raise Stopped("trajectories of the scripted agent are not kept; the next start asks it")
        watchdog.beat()
        some = questions[start : start + SCRIPTED_AT_A_TIME]
        groups = run_agents(
            expert,
            some,
            run.tools,
            max_calls=s.rollout.max_calls,
            samples=s.buffer.samples,
            rng_seed=agent_seed(s.seed, HostKey.EXPERT),
        )
        trajectories += [
            unscored(question, sample, row, "scripted")
            for question, group in zip(some, groups, strict=True)
            for sample, row in enumerate(group)
        ]
        if len(some) < len(questions):
            progress.show(start + len(some))
    return Sampling(trajectories, {})


def _endpoint(run: Run, questions: Sequence[Question]) -> Sampling:
    """A chat endpoint; a cap on spending cuts the samples of all questions alike."""
    s, n = run.settings, run.settings.buffer.endpoint
    folder = run.buffer / "agents"
    files = TrajectoryFile(folder, f"endpoint-{zlib.crc32(n.model.encode()):08x}")
    trajectories = _kept_of_endpoint(run, files, questions)
    there = {(each.question_id, each.sample) for each in trajectories}
    wanted = [
        (question, sample)
        for sample in range(s.buffer.samples)
        for question in questions
        if (question.id, sample) not in there
    ]
    total = len(questions) * s.buffer.samples
    if there:
        print(f"[buffer] resuming: {len(there)} of {total} trajectories are there", flush=True)
    budget = Budget(
        folder / "spent.jsonl", max_calls=n.max_calls_total, max_tokens=n.max_tokens_total
    )
    progress = Progress("buffer: endpoint", total=total, done=len(there))

    def keep(question: Question, sample: int, segments: list[Segment]) -> None:
        trajectory = unscored(question, sample, segments, f"endpoint:{n.model}")
        files.append([trajectory])
        trajectories.append(trajectory)
        watchdog.beat()
        progress.show(len(trajectories), calls=budget.calls, tokens=budget.tokens)
        if stop_requested():  # `converse` then waits for the running trajectories and keeps them
            raise Stopped("finished trajectories of the endpoint are kept")

    with closing(Endpoint(n, budget, user_tools=run.tokens.user_tools)) as endpoint:
        outcome = converse(
            endpoint,
            wanted,
            run.tools,
            system=run.system,
            max_calls=s.rollout.max_calls,
            concurrency=n.concurrency,
            keep=keep,
        )
    _print_outcome(run, outcome, len(trajectories), total)
    place = {question.id: i for i, question in enumerate(questions)}
    trajectories.sort(key=lambda each: (place[each.question_id], each.sample))
    info = {
        "model": n.model,
        "trajectories": len(trajectories),
        "wanted": total,
        "failed": outcome.failed,
        "calls": budget.calls,
        "tokens": budget.tokens,
        "stopped": outcome.spent,
    }
    return Sampling(trajectories, {"endpoint": info})


def _kept_of_endpoint(
    run: Run, files: TrajectoryFile, questions: Sequence[Question]
) -> list[AgentTrajectory]:
    """Trajectories of an earlier call that this one wants too."""
    s, n = run.settings, run.settings.buffer.endpoint
    settings = {
        "origin": f"endpoint:{n.model}",
        "temperature": n.temperature,
        "step_tokens": n.step_tokens,
        "max_calls": s.rollout.max_calls,
        "system": run.system,
    }
    texts = {question.id: question.question for question in questions}
    return [
        each
        for each in files.begin(settings)
        if texts.get(each.question_id) == each.question and each.sample < s.buffer.samples
    ]


def _print_outcome(run: Run, outcome: Outcome, count: int, total: int) -> None:
    if outcome.failed:
        print(
            f"[buffer] {outcome.failed} trajectories of the endpoint failed and are left out; the "
            f"last with: {outcome.problem}",
            flush=True,
        )
    if outcome.spent:
        print(
            f"[buffer] {outcome.spent}; continuing with {count} of {total} trajectories (for more "
            f"raise it, delete {run.buffer / 'done.json'} and start a new --workdir with "
            f"--config.buffer.folder={run.buffer})",
            flush=True,
        )


def _policies(samples: PolicySamples) -> Sampling:
    return Sampling(
        samples.trajectories, {"too_long": samples.too_long} if samples.too_long else {}
    )


AGENTS: dict[str, Callable[[Run, list[Question], PolicySamples], Sampling]] = {
    "scripted": lambda run, questions, _: _scripted(run, questions),
    "checkpoint": lambda run, questions, policies: _policies(policies),
    "endpoint": lambda run, questions, _: _endpoint(run, questions),
    "none": lambda run, questions, _: Sampling([], {}),
}
"""(run, questions, samples of policies) -> an agent's trajectories."""
