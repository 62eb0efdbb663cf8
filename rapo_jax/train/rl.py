"""Training with RAPO or a baseline: rollout -> rewards -> advantages -> updates, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rapo_jax.config import Settings
from rapo_jax.method.calibrate import Calibration
from rapo_jax.method.rewards import overlong_penalty
from rapo_jax.method.tape import response_mask
from rapo_jax.model.lora import trained, with_trained
from rapo_jax.run.keys import StageKey, stage_key
from rapo_jax.run.policy import load_policy, start_state
from rapo_jax.run.run import Run
from rapo_jax.run.weights import newest_step
from rapo_jax.tasks.stream import QuestionStream, question_stream
from rapo_jax.train.buffer import attach_buffer
from rapo_jax.train.calibration import Calibrator, guards, make_calibrator
from rapo_jax.train.groups import (
    AgentTapes,
    Groups,
    completed,
    equal_groups,
    hybrid_rows,
    read_agent_tapes,
    sample_batch,
    sampled_rows,
)
from rapo_jax.train.imitation import imitation_folder, train_imitation_first
from rapo_jax.train.loop import PolicyTraining, policy_optimizer
from rapo_jax.train.measures import (
    Laps,
    host_metrics,
    rollout_metrics,
    schedule_metrics,
    shared_counts,
    time_metrics,
)
from rapo_jax.train.methods import METHODS, Method
from rapo_jax.train.mini_batches import train_on_rollouts, update_metrics
from rapo_jax.train.optimizer import updates_made
from rapo_jax.train.removal import RETRIEVED_TRACES, Read
from rapo_jax.train.replay import Replay
from rapo_jax.train.rescoring import Rescorer, make_rescorer, with_old_logp
from rapo_jax.train.step_files import write_skipped, write_trajectories
from rapo_jax.train.update import Updater
from rapo_jax.types import Array, Batch, Params, TrainState


class RlParts(NamedTuple):
    """Objects that all steps of RL use.

    Of these, the stream's position and the past groups change; checkpoints hold both.
    """

    method: Method
    stream: QuestionStream
    agent_tapes: AgentTapes | None
    """None unless the method puts the buffer's trajectories into its groups."""
    replay: Replay | None
    """None unless past groups complete a batch."""
    calibrate: Calibrator
    updater: Updater
    rescore: Rescorer
    schedule: optax.Schedule
    reference: Params | None
    """Reference weights of the KL penalty: those that RL starts from; None if `rl.kl` = 0."""


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
    """Opens what `train_rl` uses.

    Some methods imitate the buffer first, see `train_imitation_first`.
    """
    s = run.settings
    if s.of_method.imitates_first and newest_step(run.workdir) is None:
        train_imitation_first(run)  # where RL has begun, a larger rl.steps does not lengthen it
    method = METHODS[s.method]
    buffer = attach_buffer(run).identity if s.reads_buffer else ""
    optimizer, schedule = policy_optimizer(s)
    begun = imitation_folder(run) if s.of_method.imitates_first else run.cold_start
    start = load_policy(run, begun)
    reference = start if s.rl.kl else None
    state = start_state(run, start if reference is None else _own_copy(start), optimizer)
    loss = method.loss(run.model, s.rl)
    updater = Updater(loss, optimizer, state, mesh=run.mesh, rl=s.rl)
    stream = question_stream(
        run.questions["train"],
        seed=s.seed,
        batch=s.fresh_questions,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    agent_tapes = read_agent_tapes(run) if s.of_method.takes_agent_tapes else None
    replay = Replay(s.rl.replay_groups) if s.of_method.replays else None
    training = PolicyTraining(run, state, buffer=buffer, stream=stream, replay=replay)
    parts = RlParts(
        method=method,
        stream=stream,
        agent_tapes=agent_tapes,
        replay=replay,
        calibrate=make_calibrator(s, num_steps=run.sampler.most_steps),
        updater=updater,
        rescore=make_rescorer(run.model, run.mesh, s.rl),
        schedule=schedule,
        reference=reference,
    )
    return parts, training


def _own_copy(params: Params) -> Params:
    """Parameters of which updates may overwrite the trained part; a frozen base is shared."""
    return with_trained(params, jax.tree.map(jnp.copy, trained(params)))


def rl_step(
    run: Run, parts: RlParts, state: TrainState, step: int
) -> tuple[TrainState, Callable[[], dict[str, float]]]:
    """One rollout batch and the updates on it; returns the new state, which may still be computed.

    The function returned with it waits for it and returns the step's metrics.
    """
    s, laps = run.settings, Laps()
    rollout_key, order_key = jax.random.split(jax.random.fold_in(stage_key(s, StageKey.RL), step))
    probability = probability_at(s, step) if s.n_hybrid else 0.0
    jax.block_until_ready(state.params)  # the updates of the last step
    laps.end("update")
    weights = jax.block_until_ready(run.sampler.load(state.params))
    laps.end("reshard")
    sample = partial(
        sample_batch,
        run,
        parts.stream,
        weights,
        rollout_key,
        step=step,
        probability=probability,
        agent_tapes=parts.agent_tapes,
    )
    groups = completed(sample(), sample, s, step=step, stream=parts.stream, replay=parts.replay)
    del weights, sample  # the update needs the room
    counts = shared_counts(run.environment.take_counts())
    laps.end("rollout")
    reward_B = shaped_reward(s, groups)
    calibration, diagnostics = jax.device_get(parts.calibrate(groups.trajectory, reward_B))
    advantage = parts.method.advantage(s, groups.trajectory, reward_B, calibration)
    rate = float(parts.schedule(int(updates_made(state.opt_state))))
    batch, length_B, removal = batch_to_read(s, parts, state.params, groups, calibration, advantage)
    state, records = train_on_rollouts(
        parts.updater, s, state, batch, length_B, order_key, parts.reference
    )
    laps.end("update")
    if s.log.trajectories and step % s.log.trajectory_every == 0:
        write_trajectories(run, step, groups, calibration, advantage)
    known = {
        **group_metrics(s, groups, calibration),
        **{name: float(x) for name, x in diagnostics.items()},
        **schedule_metrics(groups.slot_counts, rows=sampled_rows(s, groups)),
        **host_metrics(counts, rows=sampled_rows(s, groups), user_tools=run.tokens.user_tools),
        "loss/learning_rate": rate,
        "rollout/retrieval_probability": probability,
        **removal,
        **time_metrics(laps.seconds, counts, scoring_seconds=groups.scoring_seconds),
    }

    def metrics() -> dict[str, float]:
        updates, skipped_rows = update_metrics(records)
        if skipped_rows.size:
            write_skipped(run, step, skipped_rows, groups, batch)
        return known | updates

    return state, metrics


def batch_to_read(
    s: Settings,
    parts: RlParts,
    params: Params,
    groups: Groups,
    calibration: Calibration,
    advantage: Array,
) -> Read:
    """What the updates of a step read of its groups; `params` are those before the updates."""
    tape = groups.trajectory
    batch = Batch(
        tape.token_BT,
        tape.source_BT,
        tape.logp_BT,
        advantage,
        calibration.retrieved_share_B.astype(np.float32),
        groups.off_policy_B,
    )
    if parts.replay is not None:
        past_B = np.flatnonzero(groups.off_policy_B)
        batch = with_old_logp(parts.rescore, params, batch, past_B)
    length_B = np.asarray(tape.length_B, np.int64)
    return RETRIEVED_TRACES[s.rl.retrieved_traces](parts.rescore, params, batch, length_B)


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
    hybrid_B = hybrid_rows(s)
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
    if s.of_method.takes_agent_tapes:
        metrics["rollout/groups_with_trajectory"] = float(
            groups.off_policy_B.sum() / len(groups.questions)
        )
    return metrics
