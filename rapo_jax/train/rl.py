"""Training with RAPO or GRPO: rollout -> rewards -> advantages -> updates, step by step."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rapo_jax.config import Settings
from rapo_jax.io.jsonl import append_lines
from rapo_jax.method.calibrate import Calibration
from rapo_jax.method.tape import hybrid_mask
from rapo_jax.tasks import Question
from rapo_jax.tasks.stream import QuestionStream, question_stream
from rapo_jax.train.buffer import attach_buffer
from rapo_jax.train.calibration import Calibrator, guards, make_calibrator
from rapo_jax.train.distributed import allgather_rows, is_first
from rapo_jax.train.keys import StageKey, stage_key
from rapo_jax.train.loop import PolicyTraining, policy_optimizer
from rapo_jax.train.measures import (
    RowScores,
    common_failure,
    host_metrics,
    rollout_metrics,
    schedule_metrics,
    score_rows,
    shared_counts,
)
from rapo_jax.train.mini_batches import train_on_rollouts, update_metrics
from rapo_jax.train.policy import load_policy, start_state
from rapo_jax.train.run import Run
from rapo_jax.train.sampler import FOREVER
from rapo_jax.train.tapes import write_trajectories
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, Params, TrainState, Trajectory


class RlParts(NamedTuple):
    """What all steps of RL use; only the position of the stream changes."""

    stream: QuestionStream
    calibrate: Calibrator
    updater: Updater
    schedule: optax.Schedule
    reference: Params | None
    """Weights of the KL penalty, those of the cold start; None without a penalty."""


def probability_at(settings: Settings, step: int) -> float:
    """Retrieval probability of a step: constant as in the paper, or decaying to 0."""
    start, done = settings.retrieval.probability, step / settings.rl.steps
    left = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return start * left[settings.retrieval.schedule]


def train_rl(run: Run) -> PolicyTraining:
    """Trains to `rl.steps`, from the newest checkpoint if there is one."""
    for line in guards(run.settings):
        print(f"[rl] warning: {line}", flush=True)
    parts, training = open_rl(run)
    with closing(training):
        for step in training.steps():
            training.end_step(step, *rl_step(run, parts, training.state, step.number))
    return training


def open_rl(run: Run) -> tuple[RlParts, PolicyTraining]:
    s = run.settings
    buffer = attach_buffer(run).identity if s.method != "grpo" else ""
    optimizer, schedule = policy_optimizer(s)
    start = load_policy(run, run.cold_start)
    state = start_state(run, jax.tree.map(jnp.copy, start), optimizer)
    updater = Updater(
        rapo_loss(run.model, s.rl),
        optimizer,
        state,
        mesh=run.mesh,
        buckets=s.rl.buckets,
        micro_tokens=s.rl.micro_tokens,
    )
    stream = question_stream(
        run.questions["train"],
        seed=s.seed,
        batch=s.rollout.questions,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    reference = start if s.rl.kl else None
    parts = RlParts(stream, make_calibrator(s), updater, schedule, reference)
    return parts, PolicyTraining(run, state, buffer=buffer, stream=stream)


def rl_step(
    run: Run, parts: RlParts, state: TrainState, step: int
) -> tuple[TrainState, Callable[[], dict[str, float]]]:
    """One rollout batch and the updates on it; returns the new state, which may still be computed.

    The function returned with it waits for it and returns the step's metrics.
    """
    s, r = run.settings, run.settings.rollout
    questions = next(parts.stream)
    row_questions = [q for q in questions for _ in range(r.group_size)]
    key = jax.random.fold_in(stage_key(s, StageKey.RL), step)
    started = time.perf_counter()
    rollout_key, order_key = jax.random.split(key)
    probability = probability_at(s, step) if s.n_hybrid else 0.0
    jax.block_until_ready(state.params)  # the updates of the last step
    ready = time.perf_counter()
    weights = jax.block_until_ready(run.sampler.load(state.params))
    loaded = time.perf_counter()
    trajectory = run.sampler.sample(
        weights,
        rollout_key,
        questions,
        group_size=r.group_size,
        n_hybrid=s.n_hybrid,
        temperature=r.temperature,
        probability=probability,
        noise=s.retrieval.noise,
        last_retrieval=1 if s.retrieval.unit == "trajectory" else FOREVER,
    )
    del weights  # the update needs the room
    counts = shared_counts(run.environment.take_counts())
    sampled = time.perf_counter()
    scores = _score(run, step, trajectory, row_questions)
    reward_B = scores.reward_B.astype(np.float32)
    scored = time.perf_counter()
    calibration, diagnostics = jax.device_get(parts.calibrate(trajectory, reward_B))
    rate = float(parts.schedule(int(state.step)))
    batch = _batch(trajectory, calibration)
    length_B = np.asarray(trajectory.length_B, np.int64)
    state, records = train_on_rollouts(
        parts.updater, s, state, batch, length_B, order_key, parts.reference
    )
    dispatched = time.perf_counter()
    hybrid_B = hybrid_mask(r.questions, group_size=r.group_size, n_hybrid=s.n_hybrid)
    if s.log.trajectories and step % s.log.trajectory_every == 0:
        _write_trajectories(run, step, trajectory, row_questions, hybrid_B, reward_B, calibration)
    waited = counts.get("waited", 0.0)
    host_seconds = counts.get("seconds", 0.0) - waited
    known = {
        **rollout_metrics(trajectory, scores, hybrid_B, calibration),
        **{name: float(x) for name, x in diagnostics.items()},
        **schedule_metrics(run.sampler.counts, rows=len(reward_B)),
        **host_metrics(counts, rows=len(reward_B), user_tools=run.tokens.user_tools),
        "loss/learning_rate": rate,
        "rollout/retrieval_probability": probability,
        "time/reshard": loaded - ready,
        "time/rollout": sampled - loaded - host_seconds,
        "time/waiting": waited,
        "time/host": host_seconds + scored - sampled,
        "time/update": dispatched - scored + ready - started,
    }

    def metrics() -> dict[str, float]:
        updates, skipped_rows = update_metrics(records)
        if skipped_rows.size:
            _write_skipped(run, step, skipped_rows, row_questions, batch, length_B, reward_B)
        return known | updates

    return state, metrics


def _score(
    run: Run, step: int, trajectory: Trajectory, local_questions: list[Question]
) -> RowScores:
    first_row = jax.process_index() * len(local_questions)
    scores = score_rows(run, trajectory, enumerate(local_questions, first_row))
    failure = common_failure(run.tokens, trajectory, scores) if step == 0 else ""
    if failure and is_first():
        print(f"[rl] warning: in the first batch {failure}", flush=True)
    return scores


def _batch(trajectory: Trajectory, calibration: Calibration) -> Batch:
    return Batch(
        trajectory.token_BT,
        trajectory.source_BT,
        trajectory.logp_BT,
        calibration.advantage_B,
        calibration.retrieved_share_B.astype(np.float32),
    )


def _write_skipped(
    run: Run,
    step: int,
    skipped_rows: np.ndarray,
    local_questions: list[Question],
    batch: Batch,
    length_B: np.ndarray,
    reward_B: np.ndarray,
) -> None:
    """Appends the rows of skipped updates to WORKDIR/skipped.jsonl, and logs where they are."""
    ids = allgather_rows([question.id for question in local_questions])
    if not is_first():
        return
    path = run.workdir / "skipped.jsonl"
    lines = ""
    for b in sorted(set(skipped_rows.tolist())):
        numbers = (reward_B[b], batch.advantage_B[b], batch.old_logp_BT[b].sum())
        # as text: NaN and infinity are no JSON
        reward, advantage, logp = (str(float(number)) for number in numbers)
        row = {"step": step, "row": b, "question_id": ids[b], "length": int(length_B[b])}
        row |= {"reward": reward, "advantage": advantage, "logp": logp}
        lines += json.dumps(row) + "\n"
    append_lines(path, lines)
    print(
        f"[rl] warning: step {step}: an update was not finite and was skipped; its rows: {path}",
        flush=True,
    )


def _write_trajectories(
    run: Run,
    step: int,
    trajectory: Trajectory,
    local_questions: list[Question],
    hybrid_B: np.ndarray,
    reward_B: np.ndarray,
    calibration: Calibration,
) -> None:
    questions = allgather_rows([dataclasses.asdict(question) for question in local_questions])
    if not is_first():
        return
    lines = io.StringIO()
    write_trajectories(
        lines,
        run.tokens,
        trajectory,
        [Question(**each) for each in questions],
        labels={"step": step, "stage": "rl"},
        hybrid_B=hybrid_B,
        reward_B=reward_B,
        advantage_B=calibration.advantage_B,
        retrieval_B=calibration.retrieval_reward_B,
        z_BS=calibration.retrieval_reward_BS,
    )
    append_lines(run.workdir / "trajectories.jsonl", lines.getvalue())
