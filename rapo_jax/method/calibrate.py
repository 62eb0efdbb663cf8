"""The calibration of a rollout batch: tape -> step entropies -> Z -> A_ret -> A, and F_ret."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.method.advantages import group_advantage, rapo_advantage
from rapo_jax.method.entropy import step_entropy
from rapo_jax.method.rewards import retrieval_reward, retrieval_reward_per_step
from rapo_jax.method.tape import retrieved_share
from rapo_jax.types import Array, Source


class Calibration(NamedTuple):
    """What the objective needs of a rollout batch, and what it was computed from."""

    advantage_B: Array
    """A of each row (Eq. 10)."""
    retrieved_share_B: Array
    """F_ret of each row (Eq. 8)."""
    retrieval_reward_B: Array
    """Z_ret of each row (Eqs. 5-7)."""
    retrieval_reward_BS: Array
    """Z of each retrieval, at the step of the retrieved trace (Eqs. 5-7); 0 elsewhere."""
    entropy_BS: Array
    """Step entropies in nats (Eq. 2)."""
    source_BS: Array
    """`Source` of each step: RETRIEVED, POLICY or PAD."""


def calibrate(
    entropy_BT: jax.Array,
    source_BT: jax.Array,
    step_BT: jax.Array,
    reward_B: jax.Array,
    *,
    group_size: int,
    num_steps: int,
    quality: str,
    timing: str,
    entropy_floor: float,
    a: float,
    ddof: int,
    std_floor: float,
) -> Calibration:
    """Advantages and shares of retrieved tokens of a batch (Eqs. 2, 5-7, 9, 10, F_ret).

    Args:
      entropy_BT, source_BT, step_BT: of the tape, see `Trajectory`.
      reward_B: outcome reward R of each row; rows are grouped by question, `group_size` each.
      num_steps: S, steps that a row can have; static.
      quality, timing, entropy_floor: see `rewards.retrieval_reward_per_step`.
      a, ddof, std_floor: see `advantages.rapo_advantage`.
    """
    entropy_BS, source_BS = step_entropy(entropy_BT, source_BT, step_BT, num_steps=num_steps)
    variant = {"quality": quality, "timing": timing}
    Z_B = retrieval_reward(entropy_BS, source_BS, entropy_floor=entropy_floor, **variant)
    Z_BS = retrieval_reward_per_step(entropy_BS, source_BS, entropy_floor=entropy_floor, **variant)
    reward_QG, Z_QG = reward_B.reshape(-1, group_size), Z_B.reshape(-1, group_size)
    advantage_QG = rapo_advantage(reward_QG, Z_QG, a=a, ddof=ddof, std_floor=std_floor)
    share_B = retrieved_share(source_BT)
    return Calibration(advantage_QG.reshape(-1), share_B, Z_B, Z_BS, entropy_BS, source_BS)


def diagnostics(
    calibration: Calibration,
    reward_B: jax.Array,
    *,
    group_size: int,
    entropy_floor: float,
    ddof: int,
    std_floor: float,
) -> dict[str, jax.Array]:
    """Shares of steps and groups at which a numerical floor decides, and of groups with a spread.

    `floor/entropy_active`: of policy steps, those with an entropy below `entropy_floor` nats;
    `floor/std_active`: of groups, those whose Z_ret have a std below `std_floor`;
    `reward/nonzero_groups`: of groups, those with any outcome advantage above 1e-3.
    """
    policy_BS = calibration.source_BS == Source.POLICY
    below_BS = policy_BS & (calibration.entropy_BS < entropy_floor)
    Z_QG = calibration.retrieval_reward_B.reshape(-1, group_size)
    outcome_QG = group_advantage(reward_B.reshape(-1, group_size), ddof=ddof, std_floor=std_floor)
    return {
        "floor/entropy_active": below_BS.sum() / jnp.maximum(policy_BS.sum(), 1),
        "floor/std_active": (jnp.std(Z_QG, axis=1, ddof=ddof) < std_floor).mean(),
        "reward/nonzero_groups": (jnp.abs(outcome_QG).max(axis=1) > 1e-3).mean(),
    }
