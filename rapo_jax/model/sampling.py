"""Sampling a token from logits, with its log-probability and entropy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sample(NamedTuple):
    """One token of each row; log-probability and entropy in nats, float32."""

    token_B: jax.Array
    logp_B: jax.Array
    entropy_B: jax.Array


def log_softmax_entropy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities `[..., V]` and full-vocabulary entropies `[...]` in nats, in float32."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return logp, -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def sample(logits_BV: jax.Array, key_B: jax.Array, *, temperature: jax.Array | float) -> Sample:
    """Samples each row with its own key; temperature 0 is greedy.

    Log-probability and entropy are those of the untempered softmax, so that `score` reproduces
    them. A row's token depends on its logits and its key alone: not on the other rows, the batch
    size or the number of devices.
    """
    logp_BV, entropy_B = log_softmax_entropy(logits_BV)

    def noisy() -> jax.Array:
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:], jnp.float32))
        return logp_BV + temperature * gumbel(key_B)

    score_BV = jax.lax.cond(jnp.asarray(temperature) > 0, noisy, lambda: logp_BV)
    # On a CPU argmax draws the noise anew for each comparison: three times slower.
    is_top_BV = score_BV == score_BV.max(axis=-1, keepdims=True)
    token_B = jnp.where(is_top_BV, jnp.arange(logits_BV.shape[1]), logits_BV.shape[1] - 1).min(-1)
    logp_B = jnp.take_along_axis(logp_BV, token_B[:, None], axis=-1)[:, 0]
    return Sample(token_B.astype(jnp.int32), logp_B, entropy_B)
