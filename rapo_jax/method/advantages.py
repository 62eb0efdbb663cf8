"""Group-relative advantages: RAPO's (Eqs. 9, 10), and those of its baselines (docs/methods.md)."""

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
    centred_QG = centred_rewards(reward_QG)
    variance_Q1 = jnp.sum(centred_QG**2, axis=1, keepdims=True) / (group_size - ddof)
    scale_Q1 = jnp.sqrt(variance_Q1) + std_floor
    return centred_QG / jnp.where(scale_Q1 > 0, scale_Q1, 1)


def centred_rewards(reward_QG: jax.Array) -> jax.Array:
    """Rewards less their group's mean, LUFFY's advantage; exactly 0 where they are equal."""
    # The rounded mean of G equal numbers need not be that number; a group shifted by one of its own
    # members is exactly zero then, and rounding cannot pass for an advantage.
    shifted_QG = reward_QG - reward_QG[:, :1]
    return shifted_QG - jnp.mean(shifted_QG, axis=1, keepdims=True)


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
    """Smallest `a` at which 1 + a A_ret can be 0; above it, A can flip the sign of A_acc (Eq. 10).

    The lowest A_ret a group of G can hold is that of one rollout below G - 1 equal ones,
    -sqrt((G - 1) (G - ddof) / G); with ddof = 1 this is -(G - 1) / sqrt(G), so 4/15 at G = 16.
    """
    return math.sqrt(group_size / ((group_size - 1) * (group_size - ddof)))


def tree_advantage(
    reward_QG: jax.Array, tree_QG: jax.Array, *, ddof: int, std_floor: float
) -> jax.Array:
    """Tree-GRPO's advantage: over the question's rollouts, plus over those of the row's own tree.

    A tree of one leaf adds 0: with such trees alone this is `group_advantage` bit for bit.

    Args:
      reward_QG: one reward for each leaf.
      tree_QG: which tree of its question each leaf belongs to.
      ddof, std_floor: of both terms; see `group_advantage`.

    Raises:
      ValueError: a group too small.
    """
    same_QGG = tree_QG[:, :, None] == tree_QG[:, None, :]
    centred_QG, scale_QG = _among(reward_QG, same_QGG, ddof=ddof, std_floor=std_floor)
    return group_advantage(reward_QG, ddof=ddof, std_floor=std_floor) + centred_QG / scale_QG


def _among(
    value_QJ: jax.Array, same_QJJ: jax.Array, *, ddof: int, std_floor: float
) -> tuple[jax.Array, jax.Array]:
    """Each value less the mean of those in its group, and the group's std + floor.

    `same_QJJ` says which values are in the group of each one, itself included. Equal values are
    centred to exactly 0; a std that does not exist counts as 0, a scale of 0 as 1.
    """
    count_QJ = same_QJJ.sum(-1)
    # Differences to the value itself: rounding cannot pass for an advantage.
    difference_QJJ = jnp.where(same_QJJ, value_QJ[:, None, :] - value_QJ[:, :, None], 0)
    mean_QJ = difference_QJJ.sum(-1) / count_QJ
    squares_QJJ = jnp.where(same_QJJ, (difference_QJJ - mean_QJ[..., None]) ** 2, 0)
    variance_QJ = squares_QJJ.sum(-1) / jnp.maximum(count_QJ - ddof, 1)
    scale_QJ = jnp.sqrt(variance_QJ) + std_floor
    return -mean_QJ, jnp.where(scale_QJ > 0, scale_QJ, 1)


GIGPO_STD_FLOOR = 1e-6
"""Added to GiGPO's standard deviations, as by its authors' code; `rl.std_floor` is not read."""


def gigpo_advantage(
    reward_QG: jax.Array,
    step_return_BS: jax.Array,
    anchor_BS: jax.Array,
    *,
    omega: float,
    normalise: bool,
) -> jax.Array:
    """GiGPO's advantage of each step, A_E + omega A_S.

    A_E compares the rewards of a question's rollouts, A_S the returns of the steps that its
    rollouts took from the same anchor state; an anchor that occurs once has A_S = 0.

    Args:
      reward_QG: one reward for each rollout; B = Q * G.
      step_return_BS: discounted sum of the rewards from each step on.
      anchor_BS: number of the state (the text before the step) within its question; steps with
        equal numbers are compared. Negative where a row has no such step: A_S = 0 there.
      omega: weight of the step term; with 0 every step has A_E, bit for bit.
      normalise: whether both terms are divided by their groups' sample std; static.
    """
    Q, G = reward_QG.shape
    S = step_return_BS.shape[1]
    anchor_QJ, return_QJ = (x.reshape(Q, G * S) for x in (anchor_BS, step_return_BS))
    same_QJJ = (anchor_QJ[:, :, None] == anchor_QJ[:, None, :]) & (anchor_QJ >= 0)[:, :, None]
    same_QJJ |= jnp.eye(G * S, dtype=bool)
    step_QJ, scale_QJ = _among(return_QJ, same_QJJ, ddof=1, std_floor=GIGPO_STD_FLOOR)
    if normalise:
        step_QJ = step_QJ / scale_QJ
        episode_QG = group_advantage(reward_QG, ddof=1, std_floor=GIGPO_STD_FLOOR)
    else:
        episode_QG = centred_rewards(reward_QG)
    return episode_QG.reshape(Q * G, 1) + omega * step_QJ.reshape(Q * G, S)


def entropy_advantage(
    advantage_B: jax.Array, entropy_BT: jax.Array, mask_BT: jax.Array, *, weight: float
) -> jax.Array:
    """AEPO's advantage of each token, A (1 + weight z), `[B, T]`.

    z is the token's entropy, standardised over the tokens of the mask; no gradient flows through
    it. Outside the mask, with a weight of 0 or where all entropies are equal, it is A bit for bit.

    Args:
      advantage_B: A of each row.
      entropy_BT: entropy of each token's distribution, in nats; read within the mask alone.
      mask_BT: True at POLICY tokens.
    """
    mask_BT = mask_BT.astype(bool)
    entropy_BT = jax.lax.stop_gradient(jnp.where(mask_BT, entropy_BT, 0))
    tokens = jnp.maximum(mask_BT.sum(), 1)
    mean = entropy_BT.sum() / tokens
    centred_BT = jnp.where(mask_BT, entropy_BT - mean, 0)
    std = jnp.sqrt((centred_BT**2).sum() / jnp.maximum(tokens - 1, 1))
    equal = jnp.max(jnp.where(mask_BT, entropy_BT, -jnp.inf)) == jnp.min(
        jnp.where(mask_BT, entropy_BT, jnp.inf)
    )
    z_BT = jnp.where(equal | (std == 0), 0, centred_BT / jnp.where(std == 0, 1, std))
    return advantage_B[:, None] * (1 + weight * z_BT)
