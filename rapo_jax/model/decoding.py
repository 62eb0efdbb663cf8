"""The decoder with a cache: what a rollout reads and writes token by token.

Layers are unrolled, with one cache per layer, because a scan that carries a stacked cache copies it
at every token, and with one tree of weights per layer, because a program that cuts them out of
their stacks holds them twice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.attention import kernel_of
from rapo_jax.model.lora import ADAPTERS
from rapo_jax.model.sharding import compute_copy
from rapo_jax.model.transformer import Block, LayerCache, angles, embed, final_norm, stacks
from rapo_jax.types import Params

Cache = tuple[LayerCache, ...]


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
        jax.tree.map(lambda p, layer=layer: p[layer], stacks(copy))
        for layer in range(settings.layers)
    )
    return {name: x for name, x in copy.items() if name not in stacked} | {"layers": layers}


def extend(
    settings: ModelSettings, params: Params, cache: Cache, token_BX: jax.Array, start_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """Reads X more tokens of each row from position `start_B` on; returns hidden_BXD and the cache.

    `params` are a `sampling_copy`.

    Slots beyond a row's valid tokens hold garbage that the causal mask hides until it is
    overwritten, so rows of different lengths need no padding logic.
    """
    X, T = token_BX.shape[1], cache[0].key_BKHT.shape[3]
    position_BX = start_B[:, None] + jnp.arange(X)
    seen_BXT = jnp.arange(T) <= position_BX[:, :, None]
    return _read(settings, params, cache, token_BX, start_B, position_BX, seen_BXT)


def prefill(
    settings: ModelSettings, params: Params, cache: Cache, token_BX: jax.Array
) -> tuple[jax.Array, Cache]:
    """`extend` from the start of every row, by the platform's kernel if there is one."""
    start_B = jnp.zeros(token_BX.shape[:1], jnp.int32)
    if kernel_of(settings) is None:
        return extend(settings, params, cache, token_BX, start_B)
    position_BX = start_B[:, None] + jnp.arange(token_BX.shape[1])
    return _read(settings, params, cache, token_BX, start_B, position_BX, None)


def _read(
    settings: ModelSettings,
    params: Params,
    cache: Cache,
    token_BX: jax.Array,
    start_B: jax.Array,
    position_BX: jax.Array,
    seen_BXT: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    x_BXD = embed(settings, params, token_BX)
    at = angles(settings, position_BX)
    block = Block(settings)
    layers: list[LayerCache] = []
    for weights, layer_cache in zip(params["layers"], cache, strict=True):
        found: Any = block.apply(weights, x_BXD, at, seen_BXT, layer_cache, start_B)
        x_BXD = found[0]
        layers.append(found[1])
    return final_norm(settings, params, x_BXD), tuple(layers)
