"""Group-relative outcome and retrieval advantages (Eqs. 9, 10)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def group_advantage(reward_QG: jax.Array, *, ddof: int, std_floor: float) -> jax.Array:
    """Group-relative advantage (reward - mean_G) / (std_G + std_floor): Eq. 9, and GRPO's A_acc.

    A group of equal rewards has advantage exactly 0.

    Args:
      reward_QG: one reward for each rollout, grouped by question.
      ddof: 1 for the sample standard deviation, 0 for the population's; static.
      std_floor: >= 0, in units of the reward.

    Raises:
      ValueError: a group too small to have a standard deviation.
    """
    group_size = reward_QG.shape[1]
    if group_size < 2 or group_size <= ddof:
        raise ValueError(
            f"rollout.group_size={group_size}: a group-relative advantage needs at least "
            f"{max(2, ddof + 1)} rollouts per question"
        )
    # The rounded mean of G equal numbers need not be that number; a group shifted by one of its own
    # members is exactly zero then, and rounding cannot pass for an advantage.
    shifted_QG = reward_QG - reward_QG[:, :1]
    centred_QG = shifted_QG - jnp.mean(shifted_QG, axis=1, keepdims=True)
    variance_Q1 = jnp.sum(centred_QG**2, axis=1, keepdims=True) / (group_size - ddof)
    scale_Q1 = jnp.sqrt(variance_Q1) + std_floor
    return centred_QG / jnp.where(scale_Q1 > 0, scale_Q1, 1)


def rapo_advantage(
    outcome_QG: jax.Array, retrieval_QG: jax.Array, *, a: float, ddof: int, std_floor: float
) -> jax.Array:
    """A = (1 + a A_ret) A_acc: the outcome advantage, scaled by the retrieval's (Eqs. 9, 10).

    With a = 0, or equal retrieval rewards within a group, this is GRPO's advantage bit for bit.

    Args:
      outcome_QG: outcome reward R of each rollout.
      retrieval_QG: retrieval reward Z_ret of each rollout.
      a: weight of the retrieval advantage; see `largest_safe_a`.
      ddof, std_floor: of both group advantages; see `group_advantage`.
    """
    A_acc_QG = group_advantage(outcome_QG, ddof=ddof, std_floor=std_floor)
    A_ret_QG = group_advantage(retrieval_QG, ddof=ddof, std_floor=std_floor)
    return (1 + a * A_ret_QG) * A_acc_QG


def largest_safe_a(group_size: int, ddof: int) -> float:
    """The `a` from which on 1 + a A_ret can reach 0 and beyond it flip an advantage (Eq. 10).

    The lowest A_ret a group of G can hold is that of one rollout below G - 1 equal ones,
    -sqrt((G - 1) (G - ddof) / G); with ddof = 1 this is -(G - 1) / sqrt(G), so 4/15 at G = 16.
    """
    return math.sqrt(group_size / ((group_size - 1) * (group_size - ddof)))
