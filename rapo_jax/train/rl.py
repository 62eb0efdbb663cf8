"""Training with RAPO or a baseline: rollout -> rewards -> advantages -> updates, step by step."""

from __future__ import annotations

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
from rapo_jax.distributed import is_first
from rapo_jax.io.jsonl import append_lines
from rapo_jax.method.calibrate import Calibration
from rapo_jax.method.rewards import overlong_penalty
from rapo_jax.method.tape import hybrid_mask, response_mask
from rapo_jax.run.keys import StageKey, stage_key
from rapo_jax.run.policy import load_policy, start_state
from rapo_jax.run.run import Run
from rapo_jax.run.weights import newest_step
from rapo_jax.sampling.tapes import trajectory_lines
from rapo_jax.tasks.stream import QuestionStream, question_stream
from rapo_jax.train.buffer import attach_buffer
from rapo_jax.train.calibration import Calibrator, guards, make_calibrator
from rapo_jax.train.groups import AgentTapes, Groups, equal_groups, read_agent_tapes, sample_groups
from rapo_jax.train.imitation import imitation_folder, train_imitation_first
from rapo_jax.train.loop import PolicyTraining, policy_optimizer
from rapo_jax.train.measures import host_metrics, rollout_metrics, schedule_metrics, shared_counts
from rapo_jax.train.methods import METHODS, Method
from rapo_jax.train.mini_batches import train_on_rollouts, update_metrics
from rapo_jax.train.optimizer import updates_made
from rapo_jax.train.removal import better_with_traces, without_traces
from rapo_jax.train.replay import Replay
from rapo_jax.train.rescoring import Rescorer, make_rescorer, with_old_logp
from rapo_jax.train.update import Updater
from rapo_jax.types import Array, Batch, Params, Source, TrainState


class RlParts(NamedTuple):
    """What all steps of RL use; only the position of the stream changes."""

    method: Method
    stream: QuestionStream
    agent_tapes: AgentTapes | None
    """Where the method puts the buffer's trajectories into its groups."""
    replay: Replay | None
    """Where past groups complete a batch."""
    calibrate: Calibrator
    updater: Updater
    rescore: Rescorer
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
    """Trains to `rl.steps`, from the newest checkpoint if there is one.

    With method='sft_grpo' the policy imitates the buffer first, see `train_imitation_first`.
    """
    if run.settings.method == "sft_grpo" and newest_step(run.workdir) is None:
        train_imitation_first(run)  # where RL has begun, a larger rl.steps does not lengthen it
    for line in guards(run.settings):
        print(f"[rl] warning: {line}", flush=True)
    parts, training = open_rl(run)
    with closing(training):
        for step in training.steps():
            training.end_step(step, *rl_step(run, parts, training.state, step.number))
    return training


def open_rl(run: Run) -> tuple[RlParts, PolicyTraining]:
    s = run.settings
    method = METHODS[s.method]
    buffer = attach_buffer(run).identity if s.reads_buffer else ""
    optimizer, schedule = policy_optimizer(s)
    imitated = s.method == "sft_grpo"
    start = load_policy(run, imitation_folder(run) if imitated else run.cold_start)
    state = start_state(run, jax.tree.map(jnp.copy, start), optimizer)
    if s.retrieval.beyond == "learned":
        from rapo_jax.train.update import rapo_loss
        loss = rapo_loss(run.model, s.rl, learned=True)
    else:
        loss = method.loss(run.model, s.rl)
    updater = Updater(loss, optimizer, state, mesh=run.mesh, rl=s.rl)
    stream = question_stream(
        run.questions["train"],
        seed=s.seed,
        batch=s.fresh_questions,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    reference = start if s.rl.kl else None
    agent_tapes = read_agent_tapes(run) if method.takes_agent_tapes else None
    replay = Replay(s.rl.replay_groups) if method.replays else None
    training = PolicyTraining(run, state, buffer=buffer, stream=stream, replay=replay)
    parts = RlParts(
        *(method, stream, agent_tapes, replay, make_calibrator(s), updater),
        *(make_rescorer(run.model, run.mesh, s.rl), schedule, reference),
    )
    return parts, training


def rl_step(
    run: Run, parts: RlParts, state: TrainState, step: int
) -> tuple[TrainState, Callable[[], dict[str, float]]]:
    """One rollout batch and the updates on it; returns the new state, which may still be computed.

    The function returned with it waits for it and returns the step's metrics.
    """
    s, started = run.settings, time.perf_counter()
    rollout_key, order_key = jax.random.split(jax.random.fold_in(stage_key(s, StageKey.RL), step))
    probability = probability_at(s, step) if s.n_hybrid else 0.0
    if s.retrieval.beyond == "entropy":
        probability = getattr(run.environment, "threshold", 0.0)
    jax.block_until_ready(state.params)  # the updates of the last step
    ready = time.perf_counter()
    weights = jax.block_until_ready(run.sampler.load(state.params))
    loaded = time.perf_counter()
    groups = sample_groups(
        run,
        parts.stream,
        weights,
        rollout_key,
        step=step,
        probability=probability,
        agent_tapes=parts.agent_tapes,
        replay=parts.replay,
    )
    del weights  # the update needs the room
    counts = shared_counts(run.environment.take_counts())
    scored = time.perf_counter()
    reward_B = shaped_reward(s, groups)
    _add_own(run, groups)
    calibration, diagnostics = jax.device_get(parts.calibrate(groups.trajectory, reward_B))
    advantage_B = parts.method.advantage(s, groups.trajectory, reward_B, calibration)
    rate = float(parts.schedule(int(updates_made(state.opt_state))))
    batch = _batch(groups, calibration, advantage_B)
    if parts.replay is not None:
        past_B = np.flatnonzero(groups.off_policy_B)
        batch = with_old_logp(parts.rescore, state.params, batch, past_B)
    length_B, removal = np.asarray(groups.trajectory.length_B, np.int64), {}
    if s.rl.retrieved_traces == "removed":
        removed = better_with_traces(batch)
        batch, length_B = without_traces(parts.rescore, state.params, batch, length_B, removed)
        removal = {"update/rows_without_traces": len(removed) / len(reward_B)}
    state, records = train_on_rollouts(
        parts.updater, s, state, batch, length_B, order_key, parts.reference
    )
    dispatched = time.perf_counter()
    if s.log.trajectories and step % s.log.trajectory_every == 0:
        _write_trajectories(run, step, groups, calibration, advantage_B)
    waited = counts.get("waited", 0.0)
    host_seconds = counts.get("seconds", 0.0) - waited
    known = {
        **group_metrics(s, groups, calibration),
        **{name: float(x) for name, x in diagnostics.items()},
        **schedule_metrics(groups.slot_counts, rows=len(reward_B)),
        **host_metrics(counts, rows=len(reward_B), user_tools=run.tokens.user_tools),
        "loss/learning_rate": rate,
        "rollout/retrieval_probability": probability,
        **removal,
        "time/reshard": loaded - ready,
        "time/rollout": scored - loaded - host_seconds - groups.scoring_seconds,
        "time/waiting": waited,
        "time/host": host_seconds + groups.scoring_seconds,
        "time/update": dispatched - scored + ready - started,
    }

    def metrics() -> dict[str, float]:
        updates, skipped_rows = update_metrics(records)
        if skipped_rows.size:
            _write_skipped(run, step, skipped_rows, groups, batch)
        return known | updates

    return state, metrics


def shaped_reward(s: Settings, groups: Groups) -> np.ndarray:
    """The outcome reward, and the penalty of long responses where `rl.overlong` asks for it."""
    reward_B = groups.scores.reward_B.astype(np.float32)
    longest = s.rollout.max_tokens - s.rollout.prompt_tokens
    if not (room := round(s.rl.overlong * longest)):
        return reward_B
    length_B = response_mask(groups.trajectory.source_BT).sum(1)
    penalty_B = overlong_penalty(length_B, max_tokens=longest, buffer_tokens=room)
    return reward_B + np.asarray(penalty_B, np.float32)


def group_metrics(s: Settings, groups: Groups, calibration: Calibration) -> dict[str, float]:
    """`rollout_metrics` of the rows that the policy sampled, and how the groups were completed."""
    hybrid_B = _hybrid_rows(s)
    sampled_B = groups.off_policy_B == 0
    parts = (groups.trajectory, groups.scores, hybrid_B, calibration)
    metrics = rollout_metrics(*jax.tree.map(lambda x: np.asarray(x)[sampled_B], parts))
    if s.rl.resample:
        metrics["rollout/further_batches"] = float(groups.further_batches)
        metrics["rollout/equal_groups"] = float(equal_groups(groups, s.rollout.group_size).mean())
    if s.rl.replay_share:
        metrics["rollout/past_groups"] = float(
            groups.off_policy_B.sum() / s.rollout.group_size / len(groups.questions)
        )
    if METHODS[s.method].takes_agent_tapes:
        metrics["rollout/groups_with_trajectory"] = float(
            groups.off_policy_B.sum() / len(groups.questions)
        )
    return metrics


def _hybrid_rows(s: Settings) -> np.ndarray:
    r = s.rollout
    return hybrid_mask(r.questions, group_size=r.group_size, n_hybrid=s.n_hybrid)


def _batch(groups: Groups, calibration: Calibration, advantage_B: Array) -> Batch:
    return Batch(
        groups.trajectory.token_BT,
        groups.trajectory.source_BT,
        groups.trajectory.logp_BT,
        advantage_B,
        calibration.retrieved_share_B.astype(np.float32),
        groups.off_policy_B,
    )


def _write_skipped(
    run: Run, step: int, skipped_rows: np.ndarray, groups: Groups, batch: Batch
) -> None:
    """Appends the rows of skipped updates to WORKDIR/skipped.jsonl, and logs where they are."""
    if not is_first():
        return
    path, group_size = run.workdir / "skipped.jsonl", run.settings.rollout.group_size
    lines = ""
    for b in sorted(set(skipped_rows.tolist())):
        # As text: NaN and infinity are no JSON. Of advantages of tokens, the largest.
        advantage_X = np.atleast_1d(batch.advantage_B[b])
        numbers = {
            "reward": groups.scores.reward_B[b],
            "advantage": advantage_X[np.argmax(np.abs(advantage_X))],
            "logp": batch.old_logp_BT[b].sum(),
        }
        row = {
            "step": step,
            "stage": "rl",
            "row": b,
            "question_id": groups.questions[b // group_size].id,
            "length": int((np.asarray(batch.source_BT[b]) != Source.PAD).sum()),
            **{name: str(float(number)) for name, number in numbers.items()},
        }
        lines += json.dumps(row) + "\n"
    append_lines(path, lines)
    print(
        f"[rl] warning: step {step}: an update was not finite and was skipped; its rows: {path}",
        flush=True,
    )


def _write_trajectories(
    run: Run, step: int, groups: Groups, calibration: Calibration, advantage_B: Array
) -> None:
    if not is_first():
        return
    lines = trajectory_lines(
        run.tokens,
        groups.trajectory,
        [q for q in groups.questions for _ in range(run.settings.rollout.group_size)],
        labels={"step": step, "stage": "rl"},
        hybrid_B=_hybrid_rows(run.settings),
        reward_B=groups.scores.reward_B.astype(np.float32),
        advantage_B=advantage_B if advantage_B.ndim == 1 else calibration.advantage_B,
        retrieval_B=calibration.retrieval_reward_B,
        z_BS=calibration.retrieval_reward_BS,
    )
    append_lines(run.workdir / "trajectories.jsonl", lines)


def _add_own(run, groups):
    s = run.settings
    if s.retrieval.beyond == "entropy":
        t = groups.trajectory
        entropies = []
        for b in np.flatnonzero(_hybrid_rows(s)):
            policy = t.source_BT[b] == Source.POLICY
            tool = t.source_BT[b] == Source.TOOL
            for step in np.unique(t.step_BT[b][tool]):
                entropies.append(t.entropy_BT[b][policy & (t.step_BT[b] == step)].mean())
        run.environment.threshold = float(np.median(entropies)) if entropies else 0.0
    if s.retrieval.beyond != "own":
        return
    from rapo_jax.sampling.tapes import segments, steps_without_retrieved
    from rapo_jax.train.buffer import key_encoder
    if not hasattr(run.environment, "own_encode"):
        run.environment.own_encode = key_encoder(run)[0]
    rows = []
    G = run.settings.rollout.group_size
    for b in np.flatnonzero(groups.scores.reward_B >= 0.99):
        q = groups.questions[b // G]
        history = ""
        steps = steps_without_retrieved(segments(run.tokens, groups.trajectory, int(b)))
        for step in steps:
            if step.strip() and "</answer>" not in step:
                rows.append((q.question, history, step, q.id))
            history += step
    run.environment._retriever.add_own(rows, run.environment.own_encode)
