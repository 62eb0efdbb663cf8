"""Teacher-forced log-probabilities of whole rows: of chosen tokens, or of all with entropies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.chunked_log_probs import (
    Positions,
    chunked_log_probs,
    head_name,
    log_prob,
    split_logits,
)
from rapo_jax.model.sampling import log_softmax_entropy
from rapo_jax.model.sharding import (
    EVERYWHERE,
    ROWS,
    ambient_mesh,
    on_row_shards,
    row_shards,
)
from rapo_jax.model.transformer import forward
from rapo_jax.types import Params

Answer = TypeVar("Answer")
"""A pytree of arrays, rows first."""

SHORT = 512
"""Positions of a row up to which choosing among them costs as much as it saves on a CPU, and
seconds of compilation."""
FEWEST_CHUNKS = 8
"""Least number of chunks of a shard's positions in `log_probs`: at most one is computed in vain."""


def positions_at_a_time(score_logits: int, vocab: int, tensor: int) -> int:
    """Positions whose logits one device computes at a time, `score_logits` numbers or one row.

    The tensor axis splits a vocabulary that it divides.
    """
    return max(score_logits // (vocab // tensor if vocab % tensor == 0 else vocab), 1)


def chunks_of(positions: int, at_a_time: int) -> tuple[int, int]:
    """Number and size of the chunks of a shard's positions in `log_probs`."""
    size = -(-positions // max(-(-positions // at_a_time), FEWEST_CHUNKS))
    return -(-positions // size), size


def _most_positions(settings: ModelSettings) -> int:
    mesh = ambient_mesh()
    tensor = mesh.shape["tensor"] if mesh else 1
    return positions_at_a_time(settings.score_logits, settings.vocab, tensor)


def _unembedded(
    settings: ModelSettings, params: Params, of_rows: Callable[..., Answer], *arrays: object
) -> Answer:
    """`of_rows(settings, head, *arrays)` of each device's rows; `arrays` are pytrees, rows first.

    The head is gathered from the devices once, whatever the number of chunks, and the gradients of
    all chunks are added up on each device before they are summed over devices. On a tensor axis
    each device keeps its part of the vocabulary, also in the backward pass.
    """
    head = params[head_name(settings)]
    mesh = ambient_mesh()
    if mesh is None or row_shards(mesh) == 1:  # XLA refuses sums over one shard
        return of_rows(settings, head, *arrays)
    specs = (EVERYWHERE, *(ROWS,) * len(arrays))
    return on_row_shards(mesh, partial(of_rows, settings), specs)(head, *arrays)


def log_probs(
    settings: ModelSettings, params: Params, token_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """logp_BT of the tokens in `mask_BT` as `score` gives them, 0 elsewhere.

    Short rows are unembedded whole where `score_logits` allows it. Of others only the positions
    that predict a token of the mask are, in chunks.
    """
    hidden_BTD = forward(settings, params, token_BT)
    # the position before a token predicts it
    target_BT, wanted_BT = (jnp.pad(x[:, 1:], ((0, 0), (0, 1))) for x in (token_BT, mask_BT))
    positions = Positions(hidden_BTD, target_BT, wanted_BT)
    logp_BT = _unembedded(settings, params, _wanted_log_probs, positions)
    return jnp.where(mask_BT, jnp.pad(logp_BT[:, :-1], ((0, 0), (1, 0))), 0)


def _wanted_log_probs(settings: ModelSettings, head: jax.Array, positions: Positions) -> jax.Array:
    """logp_BT of the targets at wanted positions of rows; of no use at others."""
    B, T = positions.target.shape
    if T <= SHORT and B * T <= _most_positions(settings):
        return log_prob(split_logits(settings, head, positions.hidden), positions.target)
    return _chunked_log_probs(settings, head, positions)


def _chunked_log_probs(settings: ModelSettings, head: jax.Array, positions: Positions) -> jax.Array:
    """logp_BT of the targets at wanted positions of rows, by chunk; 0 at some others.

    Wanted positions are brought to the front of one axis. Chunks of it are unembedded in turn and
    recomputed in the backward pass; those without a wanted position are skipped.
    """
    B, T = positions.target.shape
    count = B * T
    _, size = chunks_of(count, _most_positions(settings))
    wanted = positions.wanted.reshape(-1)
    before = jnp.cumsum(wanted)
    after = before[-1] + jnp.arange(count) - before
    place = jnp.where(wanted, before - 1, after)  # where a stable sort puts each position
    order = jnp.zeros_like(place).at[place].set(jnp.arange(count))

    def chunks(x: jax.Array) -> jax.Array:
        x = x.reshape(count, *x.shape[2:])[order]
        x = jnp.pad(x, ((0, -count % size), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(-1, size, *x.shape[1:])

    parts = Positions(*map(chunks, positions))
    return chunked_log_probs(settings, head, parts).reshape(-1)[place].reshape(B, T)


def score(
    settings: ModelSettings, params: Params, token_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(logp_BT, entropy_BT): each token's log-probability, and the entropy it was drawn from.

    Both float32, in nats, given the tokens before it; 0 at position 0. Chunks of all rows with at
    most `score_logits` logits, or one position of each row, are unembedded in turn and recomputed
    in the backward pass.
    """
    hidden_BTD = forward(settings, params, token_BT)[:, :-1]
    pair = _unembedded(settings, params, _scores, hidden_BTD, token_BT[:, 1:])
    first_B1 = jnp.zeros((len(token_BT), 1), jnp.float32)
    logp_BT, entropy_BT = (jnp.concatenate([first_B1, x], axis=1) for x in pair)
    return logp_BT, entropy_BT


def _scores(
    settings: ModelSettings, head: jax.Array, hidden_BTD: jax.Array, target_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of `target_BT`, and the entropies of what they were drawn from."""
    B, positions, D = hidden_BTD.shape
    chunk = min(max(_most_positions(settings) // B, 1), positions)
    padding = -positions % chunk
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, padding), (0, 0)))
    target_BT = jnp.pad(target_BT, ((0, 0), (0, padding)))

    def score_chunk(hidden_BXD: jax.Array, target_BX: jax.Array) -> tuple[jax.Array, jax.Array]:
        logp_BXV, entropy_BX = log_softmax_entropy(split_logits(settings, head, hidden_BXD))
        logp_BX = jnp.take_along_axis(logp_BXV, target_BX[..., None], axis=-1)[..., 0]
        return logp_BX, entropy_BX

    if chunk == positions:  # all of it fits at once: nothing to recompute
        return score_chunk(hidden_BTD, target_BT)
    chunks = (
        hidden_BTD.reshape(B, -1, chunk, D).swapaxes(0, 1),
        target_BT.reshape(B, -1, chunk).swapaxes(0, 1),
    )
    pair = jax.lax.map(lambda arrays: jax.checkpoint(score_chunk)(*arrays), chunks)
    logp_BT, entropy_BT = (x.swapaxes(0, 1).reshape(B, -1)[:, :positions] for x in pair)
    return logp_BT, entropy_BT
