"""Step entropies from token entropies and sources (Eq. 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rapo_jax.types import Source


def step_entropy(
    entropy_BT: jax.Array, source_BT: jax.Array, step_BT: jax.Array, *, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Step entropy H_s: the mean token entropy over the policy's own tokens of step s (Eq. 2).

    Args:
      entropy_BT: entropy of the policy's untempered softmax at each token, in nats; read at POLICY
        tokens only; values elsewhere are ignored.
      source_BT: `Source` of each token.
      step_BT: step of each token, from 0. Steps from `num_steps` on are left out.
      num_steps: S, static.

    Returns:
      entropy_BS, of the dtype of `entropy_BT`: 0 for a step without POLICY tokens; and source_BS,
      int32: RETRIEVED for a step with RETRIEVED tokens, else POLICY for one with POLICY tokens,
      else PAD.
    """
    # A masked sum, not a scatter: XLA fuses the [B, T, S] comparison into the reduction, and the
    # order of summation (hence the last bit) does not depend on the device's atomics.
    in_step_BTS = step_BT[:, :, None] == jnp.arange(num_steps)
    policy_BTS = in_step_BTS & (source_BT == Source.POLICY)[:, :, None]
    retrieved_BTS = in_step_BTS & (source_BT == Source.RETRIEVED)[:, :, None]

    total_BS = jnp.sum(jnp.where(policy_BTS, entropy_BT[:, :, None], 0), axis=1)
    count_BS = jnp.sum(policy_BTS, axis=1)
    entropy_BS = total_BS / jnp.maximum(count_BS, 1).astype(entropy_BT.dtype)

    policy_BS = jnp.where(count_BS > 0, int(Source.POLICY), int(Source.PAD))
    source_BS = jnp.where(jnp.any(retrieved_BTS, axis=1), int(Source.RETRIEVED), policy_BS)
    return entropy_BS, source_BS.astype(jnp.int32)
