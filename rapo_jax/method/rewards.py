"""Retrieval reward from the change of the policy's entropy (Eqs. 5-7); DAPO's length penalty."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rapo_jax.method.variants import choose_variant
from rapo_jax.types import Source


def _decrease(before: jax.Array, after: jax.Array, floor: float) -> jax.Array:
    """g = tanh(2 dH), dH = -(H_after - H_before) / H_before (Eqs. 5, 6)."""
    return jnp.tanh(2 * (before - after) / jnp.maximum(before, floor))


QUALITIES = {
    "decrease": _decrease,
    "increase": lambda before, after, floor: -_decrease(before, after, floor),  # tab. 3: dH negated
    "off": lambda before, after, floor: jnp.ones_like(before),  # ablation w/o RQ: g = 1
}
"""Retrieval quality g(H_before, H_after, entropy_floor), by name."""

TIMINGS = {
    "high": lambda before, floor: before,  # counts more where the policy was unsure (Eq. 7)
    "low": lambda before, floor: 1 / jnp.maximum(before, floor),  # table 3: low-entropy timing
    "off": lambda before, floor: jnp.ones_like(before),  # ablation w/o RT: Z = g
}
"""Factor of retrieval timing f(H_before, entropy_floor), by name."""


class AroundRetrievals(NamedTuple):
    """Entropies of the nearest policy steps before and after each step, in nats, [B, S].

    They mean something where `judged_BS`: at retrievals that have both.
    """

    before_BS: jax.Array
    after_BS: jax.Array
    judged_BS: jax.Array


def around_retrievals(entropy_BS: jax.Array, source_BS: jax.Array) -> AroundRetrievals:
    """H_before and H_after of each retrieval (Eq. 5); arguments as in `retrieval_reward_per_step`.

    A retrieval that no policy step follows, because the trajectory ended, is not judged.
    """
    num_steps = entropy_BS.shape[1]
    position_S = jnp.arange(num_steps)
    policy_BS = source_BS == Source.POLICY
    before_BS = lax.cummax(jnp.where(policy_BS, position_S, -1), axis=1)
    after_BS = lax.cummin(jnp.where(policy_BS, position_S, num_steps), axis=1, reverse=True)

    def entropy_at(step_BS: jax.Array) -> jax.Array:
        return jnp.take_along_axis(entropy_BS, jnp.clip(step_BS, 0, num_steps - 1), axis=1)

    judged_BS = (source_BS == Source.RETRIEVED) & (before_BS >= 0) & (after_BS < num_steps)
    return AroundRetrievals(entropy_at(before_BS), entropy_at(after_BS), judged_BS)


def retrieval_reward_per_step(
    entropy_BS: jax.Array, source_BS: jax.Array, *, quality: str, timing: str, entropy_floor: float
) -> jax.Array:
    """Reward Z of each retrieval, at the step of the retrieved trace (Eqs. 5-7); 0 elsewhere.

    A retrieval that no policy step follows scores 0.

    Args:
      entropy_BS: step entropies in nats, read at POLICY steps only.
      source_BS: RETRIEVED, POLICY or PAD for each step, as `entropy.step_entropy` gives them.
      quality: a key of `QUALITIES`, static.
      timing: a key of `TIMINGS`, static.
      entropy_floor: nats, > 0; the least H_before that anything is divided by.

    Returns:
      Z_BS, of the dtype of `entropy_BS`.

    Raises:
      ValueError: unknown `quality` or `timing`.
    """
    quality_of = choose_variant(QUALITIES, key="quality", name=quality)
    timing_of = choose_variant(TIMINGS, key="timing", name=timing)

    around = around_retrievals(entropy_BS, source_BS)
    Z_BS = quality_of(around.before_BS, around.after_BS, entropy_floor)
    Z_BS = Z_BS * timing_of(around.before_BS, entropy_floor)
    return jnp.where(around.judged_BS, Z_BS, 0)


def retrieval_reward(Z_BS: jax.Array, source_BS: jax.Array) -> jax.Array:
    """Retrieval reward Z_ret of each trajectory, [B]: the mean of Z over its retrievals (Eqs. 5-7).

    Every retrieval counts in the mean, those that score 0 for want of a policy step included. A
    trajectory without retrieval has 0. `Z_BS` is what `retrieval_reward_per_step` returns.
    """
    count_B = jnp.sum(source_BS == Source.RETRIEVED, axis=1)
    return jnp.sum(Z_BS, axis=1) / jnp.maximum(count_B, 1).astype(Z_BS.dtype)


def overlong_penalty(length_B: jax.Array, *, max_tokens: int, buffer_tokens: int) -> jax.Array:
    """DAPO's soft penalty of long responses, added to the outcome reward: from 0 down to -1.

    It is 0 up to `max_tokens - buffer_tokens`, falls linearly to -1 at `max_tokens`, and stays
    there. `length_B` counts the tokens of each response.

    Raises:
      ValueError: `buffer_tokens` is not within 1 ... `max_tokens`.
    """
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(
            f"buffer_tokens={buffer_tokens}: must lie in 1 ... max_tokens={max_tokens}"
        )
    over_B = length_B - (max_tokens - buffer_tokens)
    return -jnp.clip(over_B / buffer_tokens, 0, 1)
