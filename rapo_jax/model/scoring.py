"""Teacher-forced log-probabilities and entropies of whole rows."""

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
    """(logp_BT, entropy_BT): each token's log-probability, and the entropy it was drawn from.

    Both float32, in nats, given the tokens before it; 0 in slot 0. Chunks of `score_chunk` slots
    are unembedded in turn and recomputed in the backward pass, so that no array of all slots times
    the vocabulary ever exists.
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
        chunks = (
            hidden_BTD.reshape(B, -1, chunk, D).swapaxes(0, 1),
            target_BT.reshape(B, -1, chunk).swapaxes(0, 1),
        )
        pair = jax.lax.map(lambda arrays: jax.checkpoint(score_chunk)(*arrays), chunks)
        logp_BT, entropy_BT = (x.swapaxes(0, 1).reshape(B, -1)[:, :slots] for x in pair)
    first_B1 = jnp.zeros((B, 1), jnp.float32)
    logp_BT, entropy_BT = (jnp.concatenate([first_B1, x], axis=1) for x in (logp_BT, entropy_BT))
    return logp_BT, entropy_BT
