"""Training methods as functions: advantage and loss of each.

`config.methods` has their meanings, needs and published settings; docs/methods.md their equations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rapo_jax.config import ModelSettings, RlSettings, Settings
from rapo_jax.method.advantages import (
    centred_rewards,
    entropy_advantage,
    gigpo_advantage,
    tree_advantage,
)
from rapo_jax.method.calibrate import Calibration
from rapo_jax.train.update import LossSums, luffy_loss, rapo_loss, replay_loss
from rapo_jax.types import Array, Source, Trajectory

Advantage = Callable[[Settings, Trajectory, Array, Calibration], Array]
"""(settings, trajectory, reward_B, calibration) -> A of each row, [B], or of each token, [B, T]."""


class Method(NamedTuple):
    """A method that learns from rollouts, and what of RAPO's calibration reaches it."""

    advantage: Advantage
    loss: Callable[[ModelSettings, RlSettings], LossSums]
    retrieval_reward: bool = True
    """Whether the advantage holds the retrieval reward (`rl.a`): that of `calibration` does."""
    importance_shaping: bool = True
    """Whether the loss shapes its ratios by the share of retrieved tokens (`rl.m`)."""


def calibrated(
    s: Settings, trajectory: Trajectory, reward_B: Array, calibration: Calibration
) -> Array:
    """RAPO's advantage (Eq. 10), [B]; GRPO's without retrieval."""
    return calibration.advantage_B


def centred(
    s: Settings, trajectory: Trajectory, reward_B: Array, calibration: Calibration
) -> Array:
    """LUFFY's advantage, [B]: the reward minus the group's mean, not divided by its std."""
    reward_QG = jnp.reshape(reward_B, (-1, s.rollout.group_size))
    return np.asarray(centred_rewards(reward_QG)).reshape(-1)


def of_steps(
    s: Settings, trajectory: Trajectory, reward_B: Array, calibration: Calibration
) -> Array:
    """GiGPO's advantage of each token, [B, T]; a state is the last observation."""
    G, num_steps = s.rollout.group_size, calibration.source_BS.shape[1]
    anchor_BS, left_BS = anchors(trajectory, group_size=G, num_steps=num_steps)
    return_BS = np.float32(s.rl.step_discount) ** left_BS * np.asarray(reward_B)[:, None]
    advantage_BS = gigpo_advantage(
        jnp.reshape(reward_B, (-1, G)),
        jnp.asarray(return_BS),
        jnp.asarray(anchor_BS),
        omega=s.rl.step_weight,
        normalise=s.rl.step_std,
    )
    policy_BT = trajectory.source_BT == Source.POLICY
    step_BT = np.minimum(trajectory.step_BT, num_steps - 1)
    return np.where(policy_BT, np.take_along_axis(np.asarray(advantage_BS), step_BT, axis=1), 0)


def of_trees(
    s: Settings, trajectory: Trajectory, reward_B: Array, calibration: Calibration
) -> Array:
    """Tree-GRPO's advantage, [B]: over the question's rollouts, plus over those of each tree."""
    reward_QG = jnp.reshape(reward_B, (-1, s.rollout.group_size))
    tree_QG = jnp.broadcast_to(
        jnp.arange(reward_QG.shape[1]) // s.rollout.tree_rows, reward_QG.shape
    )
    advantage_QG = tree_advantage(reward_QG, tree_QG, ddof=s.rl.ddof, std_floor=s.rl.std_floor)
    return np.asarray(advantage_QG).reshape(-1)


def of_entropy(
    s: Settings, trajectory: Trajectory, reward_B: Array, calibration: Calibration
) -> Array:
    """AEPO's advantage of each token, [B, T]: uncertain tokens weigh more."""
    advantage_BT = entropy_advantage(
        jnp.asarray(calibration.advantage_B),
        jnp.asarray(trajectory.entropy_BT),
        jnp.asarray(trajectory.source_BT == Source.POLICY),
        weight=s.rl.entropy_weight,
    )
    return np.asarray(advantage_BT)


def anchors(
    trajectory: Trajectory, *, group_size: int, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The state that each policy step starts from, and how many policy steps follow it.

    Returns:
      anchor_BS, equal for two steps of a question whose contexts end with the same observation (or
      retrieved trace), -1 where a row has no policy step; and left_BS, 0 there.
    """
    token_BT, source_BT = np.asarray(trajectory.token_BT), np.asarray(trajectory.source_BT)
    step_BT = np.asarray(trajectory.step_BT)
    anchor_BS = np.full((len(token_BT), num_steps), -1, np.int32)
    left_BS = np.zeros((len(token_BT), num_steps), np.int32)
    for b, (token_T, source_T, step_T) in enumerate(zip(token_BT, source_BT, step_BT, strict=True)):
        if b % group_size == 0:
            known: dict[bytes, int] = {}
        policy_T = source_T == Source.POLICY
        steps = [step for step in np.unique(step_T[policy_T]) if step < num_steps]
        for number, step in enumerate(steps):
            begin = np.flatnonzero(policy_T & (step_T == step))[0]
            before_T = (source_T == Source.TOOL) | (source_T == Source.RETRIEVED)
            before_T[begin:] = False
            last_T = before_T & (step_T == step_T[before_T].max(initial=-1))
            state = token_T[last_T].tobytes()
            anchor_BS[b, step] = known.setdefault(state, len(known))
            left_BS[b, step] = len(steps) - 1 - number
    return anchor_BS, left_BS


METHODS = {
    "rapo": Method(calibrated, rapo_loss),
    "grpo": Method(calibrated, rapo_loss),  # nothing is retrieved: no reward for it, F_ret = 0
    "dapo": Method(calibrated, rapo_loss),
    "gppo": Method(calibrated, rapo_loss),
    "gigpo": Method(of_steps, rapo_loss, retrieval_reward=False),
    "tree_grpo": Method(of_trees, rapo_loss, retrieval_reward=False),
    "arpo": Method(calibrated, rapo_loss),
    "aepo": Method(of_entropy, rapo_loss),
    "luffy": Method(centred, luffy_loss, retrieval_reward=False, importance_shaping=False),
    "rollout_replay": Method(calibrated, replay_loss, importance_shaping=False),
    "sft_grpo": Method(calibrated, rapo_loss),
}
"""By `config.method`; `sft` alone samples nothing."""
