"""Teacher-forced log-probabilities and entropies of whole tapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.sampling import log_softmax_entropy
from rapo_jax.model.transformer import forward, unembed
from rapo_jax.types import Params


def score(
    settings: ModelSettings, params: Params, token_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token given those before it, and the entropy it was drawn from.

    Both `[B, T]`, float32, nats, aligned with the token they belong to; slot 0, which nothing
    precedes, is 0. `vocab_chunk` slots are unembedded at a time, each recomputed in the backward
    pass, so that no array of all slots times the vocabulary ever exists.
    """
    hidden_BTD = forward(settings, params, token_BT)[:, :-1]
    target_BT = token_BT[:, 1:]
    B, slots, D = hidden_BTD.shape
    chunk = min(settings.score_chunk, slots)
    padding = -slots % chunk
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, padding), (0, 0)))
    target_BT = jnp.pad(target_BT, ((0, 0), (0, padding)))

    def score_chunk(hidden_BXD: jax.Array, target_BX: jax.Array) -> tuple[jax.Array, jax.Array]:
        logp_BXV, entropy_BX = log_softmax_entropy(unembed(settings, params, hidden_BXD))
        logp_BX = jnp.take_along_axis(logp_BXV, target_BX[..., None], axis=-1)[..., 0]
        return logp_BX, entropy_BX

    if chunk == slots:  # all of it fits at once: nothing to recompute
        logp_BT, entropy_BT = score_chunk(hidden_BTD, target_BT)
    else:
        pieces = (
            hidden_BTD.reshape(B, -1, chunk, D).swapaxes(0, 1),
            target_BT.reshape(B, -1, chunk).swapaxes(0, 1),
        )
        pair = jax.lax.map(lambda piece: jax.checkpoint(score_chunk)(*piece), pieces)
        logp_BT, entropy_BT = (x.swapaxes(0, 1).reshape(B, -1)[:, :slots] for x in pair)
    first = jnp.zeros((B, 1), jnp.float32)
    return (
        jnp.concatenate([first, logp_BT], axis=1),
        jnp.concatenate([first, entropy_BT], axis=1),
    )
