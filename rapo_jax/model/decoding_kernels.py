"""Fused kernels for one query in each row of a KV cache, which read what is written of it alone."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

PAGE = 512
"""Positions of a cache that `paged` copies at a time from a TPU's HBM."""


def cudnn(
    query_BNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    length_B: jax.Array,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """cuDNN's attention over the first `length_B` positions of each row, at least one.

    The query heads of a kv head are passed as queries of one head, so that each of its keys is read
    once.
    """
    B, N, H = query_BNH.shape
    K = key_BTKH.shape[2]
    mixed_BXKH = jax.nn.dot_product_attention(
        query_BNH.reshape(B, K, N // K, H).swapaxes(1, 2),
        key_BTKH,
        value_BTKH,
        key_value_seq_lengths=jnp.maximum(length_B, 1),
        implementation=implementation,
    )
    return mixed_BXKH.swapaxes(1, 2).reshape(B, N, H)


def paged(
    query_BNH: jax.Array, key_BKTH: jax.Array, value_BKTH: jax.Array, length_B: jax.Array
) -> jax.Array:
    """Pallas' paged attention for TPUs over the first `length_B` positions; of none it is zero.

    Each kv head of a row is a sequence of its own, whose pages lie one after another: so the cache
    keeps its rows first.
    """
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    B, N, H = query_BNH.shape
    K, T = key_BKTH.shape[1:3]
    scaled_BNH = query_BNH.astype(jnp.float32) * H**-0.5
    mixed = paged_attention(
        scaled_BNH.reshape(B * K, N // K, H),
        key_BKTH.reshape(1, -1, PAGE, H),
        value_BKTH.reshape(1, -1, PAGE, H),
        jnp.repeat(length_B, K),
        jnp.arange(B * K * T // PAGE).reshape(B * K, -1),
        pages_per_compute_block=1,
    )
    return mixed.reshape(B, N, H).astype(query_BNH.dtype)
