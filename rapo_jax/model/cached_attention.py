"""The KV cache of one layer, and attention over its written part: a form for each platform.

A form stores keys and values as its kernel reads them: another layout would be a copy of the cache
at every token. Kernels (`decoding_kernels.py`) compute a tick of decoding, one query in each row;
chunks of a row are read by plain XLA over the same cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.decoding_kernels import PAGE, cudnn, paged
from rapo_jax.model.sharding import constrain
from rapo_jax.model.whole_attention import attend, kv_heads_split, on_shards, repeat_heads

BLOCK = 128
"""Positions of a cache that `attend_blocks` reads at a time."""


def padded_positions(positions: int, page: int = BLOCK) -> int:
    """Positions of a cache: whole pages."""
    return -(-positions // page) * page


class LayerCache(NamedTuple):
    """Keys and values of one layer; place t of a row holds its position t."""

    key: jax.Array
    value: jax.Array


class CacheForm(NamedTuple):
    """How a cache is stored and read."""

    key: str
    """Axes of the cached keys, rows first."""
    value: str
    read: Callable[..., jax.Array]
    """(form, query_BXNH, layer, *, first, start_B, length_B) -> mixed_BXNH, see `attend_cached`."""
    tick: Callable[..., jax.Array] | None = None
    """A fused kernel (query_BNH, key, value, length_B) -> mixed_BNH for one query in each row."""
    page: int = BLOCK
    """The number of positions of a cache is a multiple of it."""

    def heads_on(self, kv_heads: int, tensor: int) -> int:
        """Kv heads that each device of a tensor axis stores."""
        if self.tick or kv_heads % tensor == 0:
            return math.lcm(kv_heads, tensor) // tensor
        return kv_heads

    def empty(self, settings: ModelSettings, rows: int, positions: int) -> LayerCache:
        """A cache of at least `positions` positions, in the compute dtype."""
        shape = (rows, padded_positions(positions, self.page))
        blank = jnp.zeros((*shape, settings.kv_heads, settings.head_width), settings.dtype)
        return self.layer(blank, blank)

    def layer(self, key_BXKH: jax.Array, value_BXKH: jax.Array) -> LayerCache:
        """The cache of rows that have just these keys and values.

        For a kernel kv heads that the tensor axis does not divide are stored repeatedly.
        """
        if self.tick:
            key_BXKH, value_BXKH = map(kv_heads_split, (key_BXKH, value_BXKH))
        layer = self._stored(key_BXKH, value_BXKH)
        split = {"B": "rows", "K": "kv_heads"}
        return LayerCache(
            *(constrain(x, *map(split.get, axes)) for x, axes in zip(layer, self[:2], strict=True))
        )

    def _stored(self, key_BXKH: jax.Array, value_BXKH: jax.Array) -> LayerCache:
        return LayerCache(
            _transposed(key_BXKH, "BTKH", self.key), _transposed(value_BXKH, "BTKH", self.value)
        )

    def write(
        self,
        layer: LayerCache,
        key_BXKH: jax.Array,
        value_BXKH: jax.Array,
        *,
        first: jax.Array | int,
        start_B: jax.Array,
    ) -> LayerCache:
        """Writes X positions of rows `first`, `first + 1`, ... from `start_B`; they must fit."""
        heads = layer.key.shape[self.key.index("K")]
        fresh = self._stored(repeat_heads(key_BXKH, heads), repeat_heads(value_BXKH, heads))

        def put(old: jax.Array, new: jax.Array, axes: str) -> jax.Array:
            if len(start_B) == 1:
                at = {"B": first, "T": start_B[0]}
                return jax.lax.dynamic_update_slice(old, new, [at.get(axis, 0) for axis in axes])

            def row(old: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
                return jax.lax.dynamic_update_slice_in_dim(old, new, start, axes.index("T") - 1)

            return jax.vmap(row)(old, new, start_B)

        return LayerCache(
            put(layer.key, fresh.key, self.key), put(layer.value, fresh.value, self.value)
        )

    def part(
        self,
        layer: LayerCache,
        *,
        first: jax.Array | int,
        rows: int,
        at: jax.Array | int,
        positions: int,
    ) -> tuple[jax.Array, jax.Array]:
        """key_BKHT and value_BKTH of some rows and positions."""

        def cut(x: jax.Array, axes: str, wanted: str) -> jax.Array:
            start = [{"B": first, "T": at}.get(axis, 0) for axis in axes]
            size = [
                {"B": rows, "T": positions}.get(axis, length)
                for axis, length in zip(axes, x.shape, strict=True)
            ]
            return _transposed(jax.lax.dynamic_slice(x, start, size), axes, wanted)

        return cut(layer.key, self.key, "BKHT"), cut(layer.value, self.value, "BKTH")


def _transposed(x: jax.Array, axes: str, wanted: str) -> jax.Array:
    return x.transpose([axes.index(axis) for axis in wanted])


def attend_cached(
    form: CacheForm,
    query_BXNH: jax.Array,
    layer: LayerCache,
    *,
    first: jax.Array | int,
    start_B: jax.Array,
    length_B: jax.Array,
) -> jax.Array:
    """Attention of X queries, at positions from `start_B` on, over positions up to their own.

    The rows are `first`, `first + 1`, ... of the cache. `length_B` positions of a row are attended
    to at most; for a row of length 0 the result is finite and of no use.
    """
    B, X = query_BXNH.shape[:2]
    if form.tick is None or X > 1 or B < layer.key.shape[0]:
        return form.read(form, query_BXNH, layer, first=first, start_B=start_B, length_B=length_B)
    axes = f"BNH,{form.key},{form.value},B->BNH"
    return on_shards(form.tick, axes, query_BXNH[:, 0], *layer, length_B)[:, None]


def attend_blocks(
    form: CacheForm,
    query_BXNH: jax.Array,
    layer: LayerCache,
    *,
    first: jax.Array | int,
    start_B: jax.Array,
    length_B: jax.Array,
) -> jax.Array:
    """`attend_cached` block after block with a running softmax, as far as the longest row.

    A block beyond a row's end leaves its result as it is, bit for bit. Scores, softmax and sums are
    float32.
    """
    B, X, N, H = query_BXNH.shape
    K = layer.key.shape[form.key.index("K")]
    query_BKXH = query_BXNH.reshape(B, X, K, N // K, H).swapaxes(1, 2).reshape(B, K, -1, H)
    position_BX = start_B[:, None] + jnp.arange(X)
    position_BX = jnp.repeat(position_BX, N // K, axis=1)  # of the queries of one kv head

    def block(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest_BKX1, total_BKX1, mixed_BKXH = sums
        at = index * BLOCK
        key_BKHT, value_BKTH = form.part(layer, first=first, rows=B, at=at, positions=BLOCK)
        score = jnp.einsum(
            "BKXH,BKHT->BKXT", query_BKXH, key_BKHT, preferred_element_type=jnp.float32
        )
        visible_BXT = at + jnp.arange(BLOCK) <= position_BX[:, :, None]
        score = jnp.where(visible_BXT[:, None], score * H**-0.5, jnp.finfo(jnp.float32).min)
        higher_BKX1 = jnp.maximum(highest_BKX1, score.max(axis=-1, keepdims=True))
        weight = jnp.exp(score - higher_BKX1)
        scale_BKX1 = jnp.exp(highest_BKX1 - higher_BKX1)
        mixed = jnp.einsum(
            "BKXT,BKTH->BKXH",
            weight.astype(value_BKTH.dtype),
            value_BKTH,
            preferred_element_type=jnp.float32,
        )
        total_BKX1 = total_BKX1 * scale_BKX1 + weight.sum(axis=-1, keepdims=True)
        return higher_BKX1, total_BKX1, mixed_BKXH * scale_BKX1 + mixed

    none = jnp.full((*query_BKXH.shape[:3], 1), jnp.finfo(jnp.float32).min)
    zero = jnp.zeros(query_BKXH.shape, jnp.float32)
    sums = (none, jnp.zeros_like(none), zero)
    blocks = -(-jnp.maximum(length_B.max(), 1) // BLOCK)
    _, total_BKX1, mixed_BKXH = jax.lax.fori_loop(0, blocks, block, sums)
    mixed = (mixed_BKXH / total_BKX1).astype(query_BXNH.dtype)
    return mixed.reshape(B, K, X, N // K, H).swapaxes(1, 2).reshape(B, X, N, H)


def attend_allocation(
    form: CacheForm,
    query_BXNH: jax.Array,
    layer: LayerCache,
    *,
    first: jax.Array | int,
    start_B: jax.Array,
    length_B: jax.Array,
) -> jax.Array:
    """`attend_cached` over all positions, masked: for GPUs.

    There XLA's loops with a traced bound wait for the host at every turn, in each layer.
    """
    del length_B  # no query sees beyond its own position
    B, X = query_BXNH.shape[:2]
    T = layer.key.shape[form.key.index("T")]
    key_BKHT, value_BKTH = form.part(layer, first=first, rows=B, at=0, positions=T)
    position_BX = start_B[:, None] + jnp.arange(X)
    return attend(query_BXNH, key_BKHT, value_BKTH, jnp.arange(T) <= position_BX[:, :, None])


FORMS: Mapping[str, CacheForm] = {
    "blocks": CacheForm("BKHT", "BKTH", attend_blocks),
    "plain": CacheForm("BKHT", "BKTH", attend_allocation),
    "cudnn": CacheForm("BTKH", "BTKH", attend_allocation, cudnn),
    "paged": CacheForm("BKTH", "BKTH", attend_blocks, paged, PAGE),
}
