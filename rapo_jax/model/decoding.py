"""The decoder with a KV cache: prefill and token-by-token decoding of a rollout.

Layers are unrolled, with one cache per layer, because a scan that carries a stacked cache copies it
at every token; and with one tree of weights per layer, because a program that slices them out of
their stacks holds them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.attention import attend_whole, cache_form
from rapo_jax.model.cached_attention import LayerCache, attend_cached
from rapo_jax.model.lora import ADAPTERS
from rapo_jax.model.sharding import compute_copy
from rapo_jax.model.transformer import Mixed, angles, apply_block, embed, final_norm, stacked_blocks
from rapo_jax.types import Params

Cache: TypeAlias = tuple[LayerCache, ...]


def empty_cache(settings: ModelSettings, *, rows: int, positions: int) -> Cache:
    """A cache of at least `positions` positions for each of `rows` rows, in the compute dtype."""
    form = cache_form(settings)
    return tuple(form.empty(settings, rows, positions) for _ in range(settings.layers))


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


def prefill(
    settings: ModelSettings, params: Params, token_BX: jax.Array
) -> tuple[jax.Array, Cache]:
    """Reads whole rows from their start; returns hidden_BXD and a cache of X positions."""
    form = cache_form(settings)

    def mix(query: jax.Array, key: jax.Array, value: jax.Array) -> Mixed:
        return attend_whole(settings, query, key, value), form.layer(key, value)

    start_B = jnp.zeros(token_BX.shape[:1], jnp.int32)
    mixes = [mix] * settings.layers
    return _read(settings, params, token_BX, start_B, mixes)


def extend(
    settings: ModelSettings,
    params: Params,
    cache: Cache,
    token_BX: jax.Array,
    start_B: jax.Array,
    *,
    length_B: jax.Array,
    row_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads X more tokens of B rows from position `start_B`; returns hidden_BXD and the cache.

    The rows of the cache are `row_B`, each another one; None: all of them, for which the platform
    may have a faster kernel. `params` are a `sampling_copy`. At most `length_B` positions of a row
    are attended to: a row that reaches beyond, such as one of length 0, which costs least, gets a
    hidden state of no use.

    Positions beyond a row's valid tokens hold garbage that the causal mask hides until it is
    overwritten, so rows of different lengths need no padding logic.
    """
    form = cache_form(settings)

    def mix(layer: LayerCache, query: jax.Array, key: jax.Array, value: jax.Array) -> Mixed:
        layer = form.write(layer, key, value, row_B=row_B, start_B=start_B)
        mixed = attend_cached(form, query, layer, row_B=row_B, start_B=start_B, length_B=length_B)
        return mixed, layer

    mixes = [partial(mix, layer) for layer in cache]
    return _read(settings, params, token_BX, start_B, mixes)


def _read(
    settings: ModelSettings,
    params: Params,
    token_BX: jax.Array,
    start_B: jax.Array,
    mixes: Sequence[Callable[..., Mixed]],
) -> tuple[jax.Array, Cache]:
    x_BXD = embed(settings, params, token_BX)
    at = angles(settings, start_B[:, None] + jnp.arange(token_BX.shape[1]))
    layers: list[LayerCache] = []
    for weights, mix in zip(params["layers"], mixes, strict=True):
        x_BXD, layer = apply_block(settings, weights, x_BXD, at, mix)
        assert layer is not None
        layers.append(layer)
    return final_norm(settings, params, x_BXD), tuple(layers)
