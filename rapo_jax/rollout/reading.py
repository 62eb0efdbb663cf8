"""Reading tokens that the policy did not write into the cache, a bounded number at a time."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.decoding import Cache, extend
from rapo_jax.types import Params


class Read(NamedTuple):
    """What reading leaves behind: each row's last hidden state, and the cache."""

    hidden_BD: jax.Array
    cache: Cache


def _read(
    model: ModelSettings,
    params: Params,
    before: Read,
    token_BX: jax.Array,
    start_B: jax.Array,
    length_B: jax.Array,
) -> Read:
    """`before` and a span; rows without a token keep their hidden state."""
    hidden_BXD, cache = extend(model, params, before.cache, token_BX, start_B)
    last_B11 = jnp.maximum(length_B - 1, 0)[:, None, None]
    hidden_BD = jnp.where(
        (length_B > 0)[:, None],
        jnp.take_along_axis(hidden_BXD, last_B11, axis=1)[:, 0],
        before.hidden_BD,
    )
    return Read(hidden_BD, cache)


def read_span(
    model: ModelSettings,
    params: Params,
    before: Read,
    token_BX: jax.Array,
    start_B: jax.Array,
    length_B: jax.Array,
    *,
    chunk: int,
) -> Read:
    """Reads the first `length_B` tokens of each row from position `start_B` on.

    Of a span of more than `chunk` slots so many are read at a time, as far as any row's tokens go:
    there are no scores and activations of more. Where `chunk` does not divide the span, the last
    chunk begins earlier and reads some slots twice: no slot behind the span is ever written.
    """
    slots = token_BX.shape[1]
    if slots <= chunk:
        return _read(model, params, before, token_BX, start_B, length_B)
    longest = length_B.max()

    def unread(carry):
        # That it is less than a constant follows; a plan reads there how often the loop may turn.
        return (carry[0] < -(-slots // chunk)) & (carry[0] * chunk < longest)

    def read(carry):
        index, before = carry
        at = jnp.minimum(index * chunk, slots - chunk)
        part_BX = jax.lax.dynamic_slice_in_dim(token_BX, at, chunk, axis=1)
        here_B = jnp.minimum(length_B - at, chunk)
        return index + 1, _read(model, params, before, part_BX, start_B + at, here_B)

    return jax.lax.while_loop(unread, read, (jnp.int32(0), before))[1]
