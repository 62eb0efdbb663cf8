"""One decoder for Qwen2/2.5, Qwen3 and Llama 3.

Grouped-query attention, RoPE; QKV bias, QK norm and tied embeddings where the family has them.

The policy is a Flax Linen module used as pure `init`/`apply`. Block parameters are stacked over
layers (`blocks/... [L, ...]`): training scans over layers. `model/decoding.py` reads with a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.attention import attend, kernel_of, on_shards
from rapo_jax.model.lora import ADAPTERS, adapted
from rapo_jax.model.remat import remat
from rapo_jax.model.sharding import constrain
from rapo_jax.types import Params


class LayerCache(NamedTuple):
    """Keys and values of one layer, slot t holding position t of each row."""

    key_BKHT: jax.Array
    value_BKTH: jax.Array


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, scaled; returns the dtype it was given."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype)


class Angles(NamedTuple):
    """Cosine and sine of every rotary angle, computed once for all layers."""

    cos_BX1H: jax.Array
    sin_BX1H: jax.Array


def angles(settings: ModelSettings, position_BX: jax.Array) -> Angles:
    """Rotary angles of positions, float32, `head_width / 2` frequencies."""
    half = settings.head_width // 2
    frequency_H = settings.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if settings.rope_type == "llama3":
        frequency_H = _llama3(settings, frequency_H)
    angle_BX1H = position_BX[:, :, None, None].astype(jnp.float32) * frequency_H
    return Angles(jnp.cos(angle_BX1H), jnp.sin(angle_BX1H))


def _llama3(settings: ModelSettings, frequency_H: jax.Array) -> jax.Array:
    """Llama 3.1's longer context: frequencies that turn seldom in `rope_positions` are slowed down.

    With n turns in the original context: n < `rope_low_freq` divides by `rope_factor`,
    n > `rope_high_freq` changes nothing, and between the two the change is blended in linearly.
    """
    s = settings
    turns_H = s.rope_positions * frequency_H / (2 * jnp.pi)
    kept_H = (turns_H - s.rope_low_freq) / (s.rope_high_freq - s.rope_low_freq)
    kept_H = jnp.clip(kept_H, 0.0, 1.0)
    return frequency_H * (kept_H + (1 - kept_H) / s.rope_factor)


def rotate(x_BXNH: jax.Array, at: Angles) -> jax.Array:
    """Rotary position embedding in the half-split layout of Hugging Face, in float32."""
    left, right = jnp.split(x_BXNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = at
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BXNH.dtype)


def write_cache(cache: LayerCache, new: LayerCache, start_B: jax.Array) -> LayerCache:
    """Writes X new slots of every row from its `start_B`; the caller leaves slack at the end."""

    def put(old: jax.Array, fresh: jax.Array, axis: int) -> jax.Array:
        def row(old: jax.Array, fresh: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, fresh, start, axis)

        return jax.vmap(row)(old, fresh, start_B)

    return LayerCache(
        put(cache.key_BKHT, new.key_BKHT, 2), put(cache.value_BKTH, new.value_BKTH, 1)
    )


class Block(nn.Module):
    """One pre-norm layer. With a cache it extends it from `start_B` and attends over it.

    Without `seen` the rows are whole ones, and the platform's kernel attends over them. Adapters
    are a collection of their own beside the parameters (`lora.py`).

    Projections see the tokens of all rows as one axis: XLA's weight gradients are twice as fast on
    CPU than with rows and slots apart.
    """

    settings: ModelSettings

    @nn.compact
    def __call__(
        self,
        x_BXD: jax.Array,
        at: Angles,
        seen: jax.Array | None,
        cache: LayerCache | None,
        start_B: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        s = self.settings
        B, X, D = x_BXD.shape
        init = normal(s.init_scale)

        def dense(x: jax.Array, width: int, name: str, use_bias: bool = False) -> jax.Array:
            layer = nn.Dense(
                width, use_bias=use_bias, dtype=jnp.dtype(s.dtype), kernel_init=init, name=name
            )
            flat = x.reshape(B * X, -1)
            if not self.has_variable(ADAPTERS, name):
                return layer(flat)
            return adapted(s, layer(flat), flat, self.get_variable(ADAPTERS, name))

        def heads(x: jax.Array, count: int, name: str) -> jax.Array:
            projected = dense(x, count * s.head_width, name, s.qkv_bias)
            return projected.reshape(B, X, count, s.head_width)

        normed = RMSNorm(s.norm_eps, name="attention_norm")(x_BXD)
        query = heads(normed, s.heads, "query")
        key = heads(normed, s.kv_heads, "key")
        value = heads(normed, s.kv_heads, "value")
        if s.qk_norm:
            query = RMSNorm(s.norm_eps, name="query_norm")(query)
            key = RMSNorm(s.norm_eps, name="key_norm")(key)
        query = constrain(rotate(query, at), "rows", None, "heads")
        key = constrain(rotate(key, at), "rows", None, "kv_heads")
        value = constrain(value, "rows", None, "kv_heads")
        readable = LayerCache(key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3))
        if cache is not None:
            assert start_B is not None
            cache = readable = write_cache(cache, readable, start_B)
        if seen is None:
            kernel = kernel_of(s)
            assert kernel is not None
            mixed = on_shards(kernel.attend, query, key, value)
        else:
            mixed = attend(query, *readable, seen)
        x_BXD = x_BXD + dense(mixed, D, "output").reshape(B, X, D)
        normed = RMSNorm(s.norm_eps, name="ffn_norm")(x_BXD)
        gated = nn.silu(dense(normed, s.ffn, "gate")) * dense(normed, s.ffn, "up")
        gated = constrain(gated, "rows", "ffn")
        x_BXD = x_BXD + dense(gated, D, "down").reshape(B, X, D)
        return constrain(x_BXD, "rows"), cache


def normal(scale: float) -> nn.initializers.Initializer:
    """N(0, scale^2). Without the barrier, factors are merged when jitted, and bits are others."""

    def draw(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return scale * jax.lax.optimization_barrier(jax.random.normal(key, shape, dtype))

    return draw


def init_params(settings: ModelSettings, key: jax.Array) -> Params:
    """Fresh float32 parameters: `embed_VD`, stacked `blocks`, `norm`, and `head_DV` unless tied."""
    embed_key, head_key, block_key = jax.random.split(key, 3)
    shape = (settings.vocab, settings.width)
    x = jnp.zeros((1, 1, settings.width), jnp.dtype(settings.dtype))
    block, draw = Block(settings), normal(settings.init_scale)

    def init_block(layer_key: jax.Array) -> Params:
        at = angles(settings, jnp.zeros((1, 1), jnp.int32))
        return block.init(layer_key, x, at, jnp.ones((1, 1, 1), bool), None, None)["params"]

    params = {
        "embed_VD": draw(embed_key, shape),
        "blocks": jax.vmap(init_block)(jax.random.split(block_key, settings.layers)),
        "norm": RMSNorm(settings.norm_eps).init(block_key, x)["params"],
    }
    if not settings.tied:
        params["head_DV"] = draw(head_key, shape[::-1])
    return params


def embed(settings: ModelSettings, params: Params, token_BX: jax.Array) -> jax.Array:
    """Embeddings [B, X, D] in the compute dtype."""
    return params["embed_VD"].astype(jnp.dtype(settings.dtype))[token_BX]


def final_norm(settings: ModelSettings, params: Params, x: jax.Array) -> Any:
    """What `unembed` reads, of what the last block gives."""
    return RMSNorm(settings.norm_eps).apply({"params": params["norm"]}, x)


def unembed(settings: ModelSettings, params: Params, hidden: jax.Array) -> jax.Array:
    """Float32 logits `[..., V]` of final hidden states `[..., D]`."""
    head = params["embed_VD"].T if settings.tied else params["head_DV"]
    dtype = jnp.dtype(settings.dtype)
    return jnp.matmul(hidden.astype(dtype), head.astype(dtype), preferred_element_type=jnp.float32)


def stacks(params: Params) -> Params:
    """The variables of all blocks, stacked over layers: parameters, and adapters if there are."""
    adapters = {ADAPTERS: params[ADAPTERS]} if ADAPTERS in params else {}
    return {"params": params["blocks"]} | adapters


def forward(settings: ModelSettings, params: Params, token_BT: jax.Array) -> jax.Array:
    """Hidden states hidden_BTD of whole rows, teacher-forced; padding at the end is harmless."""
    T = token_BT.shape[1]
    at = angles(settings, jnp.arange(T)[None])
    seen_1TT = jnp.tril(jnp.ones((T, T), bool))[None] if kernel_of(settings) is None else None
    block = Block(settings)

    def layer(x_BTD: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        found: Any = block.apply(weights, x_BTD, at, seen_1TT, None, None)
        return found[0], None

    x_BTD = constrain(embed(settings, params, token_BT), "rows")
    x_BTD, _ = jax.lax.scan(
        remat(settings, layer), x_BTD, stacks(params), unroll=settings.layer_unroll
    )
    return final_norm(settings, params, x_BTD)
