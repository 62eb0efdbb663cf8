"""The calibration of a rollout batch: tape -> step entropies -> Z -> A_ret -> A, and F_ret."""

from __future__ import annotations

from typing import NamedTuple

import jax

from rapo_jax.method.advantages import rapo_advantage
from rapo_jax.method.entropy import step_entropy
from rapo_jax.method.rewards import retrieval_reward, retrieval_reward_per_step
from rapo_jax.method.tape import retrieved_share
from rapo_jax.types import Array


class Calibration(NamedTuple):
    """Inputs of the objective from a rollout batch, and intermediate values."""

    advantage_B: Array  # A (Eq. 10)
    retrieved_share_B: Array  # F_ret (Eq. 8)
    retrieval_reward_B: Array  # Z_ret (Eqs. 5-7)
    retrieval_reward_BS: Array  # Z, at the step of the retrieved trace (Eqs. 5-7); 0 elsewhere
    entropy_BS: Array  # step entropies in nats (Eq. 2)
    source_BS: Array  # `Source` of each step: RETRIEVED, POLICY or PAD


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

    Returns:
      A `Calibration`.

    Raises:
      ValueError: unknown `quality` or `timing`, or `group_size` is too small.
    """
    entropy_BS, source_BS = step_entropy(entropy_BT, source_BT, step_BT, num_steps=num_steps)
    Z_BS = retrieval_reward_per_step(
        entropy_BS, source_BS, quality=quality, timing=timing, entropy_floor=entropy_floor
    )
    Z_B = retrieval_reward(Z_BS, source_BS)
    reward_QG, Z_QG = reward_B.reshape(-1, group_size), Z_B.reshape(-1, group_size)
    advantage_QG = rapo_advantage(reward_QG, Z_QG, a=a, ddof=ddof, std_floor=std_floor)
    share_B = retrieved_share(source_BT)
    return Calibration(advantage_QG.reshape(-1), share_B, Z_B, Z_BS, entropy_BS, source_BS)
