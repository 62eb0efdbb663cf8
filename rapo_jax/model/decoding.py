"""The decoder with a KV cache: what a rollout reads and writes token by token.

Layers are unrolled, with one cache per layer, because a scan that carries a stacked cache copies it
at every token; and with one tree of weights per layer, because a program that slices them out of
their stacks holds them twice.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.attention import kernel_of
from rapo_jax.model.lora import ADAPTERS
from rapo_jax.model.sharding import compute_copy
from rapo_jax.model.transformer import (
    LayerCache,
    angles,
    apply_block,
    embed,
    final_norm,
    stacked_blocks,
)
from rapo_jax.types import Params

Cache: TypeAlias = tuple[LayerCache, ...]


def empty_cache(settings: ModelSettings, *, rows: int, slots: int) -> Cache:
    """A cache of `slots` positions for each of `rows` rows, in the compute dtype."""
    K, H, dtype = settings.kv_heads, settings.head_width, jnp.dtype(settings.dtype)

    def layer() -> LayerCache:
        return LayerCache(
            jnp.zeros((rows, K, H, slots), dtype), jnp.zeros((rows, K, slots, H), dtype)
        )

    return tuple(layer() for _ in range(settings.layers))


def sampling_copy(settings: ModelSettings, params: Params) -> Params:
    """Parameters as `extend` and `prefill` read them: in the compute dtype, the layers apart.

    Instead of `blocks` [L, ...] and adapters there is `layers`, the variables of each block.
    """
    copy, stacked = compute_copy(settings, params), ("blocks", ADAPTERS)
    layers = tuple(
        jax.tree.map(lambda p, layer=layer: p[layer], stacked_blocks(copy))
        for layer in range(settings.layers)
    )
    return {name: x for name, x in copy.items() if name not in stacked} | {"layers": layers}


def extend(
    settings: ModelSettings, params: Params, cache: Cache, token_BX: jax.Array, start_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """Reads X more tokens of each row from position `start_B`; returns hidden_BXD and the cache.

    `params` are a `sampling_copy`.

    Slots beyond a row's valid tokens hold garbage that the causal mask hides until it is
    overwritten, so rows of different lengths need no padding logic.
    """
    return _read(settings, params, cache, token_BX, start_B, masked=True)


def prefill(
    settings: ModelSettings, params: Params, cache: Cache, token_BX: jax.Array
) -> tuple[jax.Array, Cache]:
    """`extend` from the start of every row, by the platform's kernel if there is one."""
    start_B = jnp.zeros(token_BX.shape[:1], jnp.int32)
    masked = kernel_of(settings) is None
    return _read(settings, params, cache, token_BX, start_B, masked=masked)


def _read(
    settings: ModelSettings,
    params: Params,
    cache: Cache,
    token_BX: jax.Array,
    start_B: jax.Array,
    *,
    masked: bool,
) -> tuple[jax.Array, Cache]:
    X, T = token_BX.shape[1], cache[0].key_BKHT.shape[3]
    position_BX = start_B[:, None] + jnp.arange(X)
    visible_BXT = jnp.arange(T) <= position_BX[:, :, None] if masked else None
    x_BXD, at = embed(settings, params, token_BX), angles(settings, position_BX)
    layers: list[LayerCache] = []
    for weights, layer_cache in zip(params["layers"], cache, strict=True):
        x_BXD, layer_cache = apply_block(
            settings, weights, x_BXD, at, visible_BXT, layer_cache, start_B
        )
        layers.append(layer_cache)
    return final_norm(settings, params, x_BXD), tuple(layers)
