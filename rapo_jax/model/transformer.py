"""The decoder of Qwen2/2.5, Qwen3 and Llama 3: grouped-query attention and RoPE.

QKV bias, QK norm and tied embeddings where the family has them. Block parameters are stacked over
layers (`blocks/... [L, ...]`), and `forward` scans over them. `model/decoding.py` reads with a
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.attention import attend_whole
from rapo_jax.model.cached_attention import LayerCache
from rapo_jax.model.lora import ADAPTERS, adapted
from rapo_jax.model.remat import remat
from rapo_jax.model.sharding import constrain
from rapo_jax.types import Params

Mixed = tuple[jax.Array, LayerCache | None]
"""Attention's output [B, X, N, H], and the layer's cache; None where there is none."""


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """Root-mean-square norm in float32, scaled, in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its scale as a parameter."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return rms_norm(x, scale, eps=self.eps)


Angles = tuple[jax.Array, jax.Array]
"""Cosine and sine of every rotary angle, [B, X, 1, R], computed once for all layers."""


def angles(settings: ModelSettings, position_BX: jax.Array) -> Angles:
    """Rotary angles of positions, float32, for the R = H / 2 frequencies."""
    pairs = settings.head_width // 2
    frequency_R = settings.rope_theta ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
    if settings.rope_type == "llama3":
        frequency_R = _llama3(settings, frequency_R)
    angle_BX1R = position_BX[:, :, None, None].astype(jnp.float32) * frequency_R
    return jnp.cos(angle_BX1R), jnp.sin(angle_BX1R)


def _llama3(settings: ModelSettings, frequency_R: jax.Array) -> jax.Array:
    """Lower frequencies for the longer context of Llama 3.1.

    A frequency makes n turns in the original context of `rope_positions`: it is divided by
    `rope_factor` if n < `rope_low_freq`, kept if n > `rope_high_freq`, and in between blended.
    """
    s = settings
    turns_R = s.rope_positions * frequency_R / (2 * jnp.pi)
    kept_R = (turns_R - s.rope_low_freq) / (s.rope_high_freq - s.rope_low_freq)
    kept_R = jnp.clip(kept_R, 0.0, 1.0)
    return frequency_R * (kept_R + (1 - kept_R) / s.rope_factor)


def rotate(x_BXNH: jax.Array, at: Angles) -> jax.Array:
    """Rotary position embedding in the half-split layout of Hugging Face, in float32."""
    left, right = jnp.split(x_BXNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = at
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BXNH.dtype)


class Block(nn.Module):
    """One pre-norm layer; `mix` is its attention: (query, key, value) -> (output, cache).

    Query has the axes BXNH, key and value BXKH. Adapters are a Flax collection beside the
    parameters (`lora.py`).

    Projections take the tokens of all rows as one axis: XLA's weight gradients are twice as fast on
    CPU than with rows and slots apart.
    """

    settings: ModelSettings

    @nn.compact
    def __call__(self, x_BXD: jax.Array, at: Angles, mix: Callable[..., Mixed]) -> Mixed:
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
        mixed, cache = mix(query, key, value)
        x_BXD = x_BXD + dense(mixed, D, "output").reshape(B, X, D)
        normed = RMSNorm(s.norm_eps, name="ffn_norm")(x_BXD)
        gated = nn.silu(dense(normed, s.ffn, "gate")) * dense(normed, s.ffn, "up")
        gated = constrain(gated, "rows", "ffn")
        x_BXD = x_BXD + dense(gated, D, "down").reshape(B, X, D)
        return constrain(x_BXD, "rows"), cache


def apply_block(
    settings: ModelSettings,
    variables: Params,
    x_BXD: jax.Array,
    at: Angles,
    mix: Callable[..., Mixed],
) -> Mixed:
    """`Block` with the given parameters (and adapters)."""
    return cast(Mixed, Block(settings).apply(variables, x_BXD, at, mix))


def normal(scale: float) -> nn.initializers.Initializer:
    """Initialiser N(0, scale^2). Without the barrier, jit merges factors and changes bits."""

    def draw(
        key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> jax.Array:
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
        return block.init(layer_key, x, at, lambda query, *_: (query, None))["params"]

    params = {
        "embed_VD": draw(embed_key, shape),
        "blocks": jax.vmap(init_block)(jax.random.split(block_key, settings.layers)),
        "norm": {"scale": jnp.ones((settings.width,), jnp.float32)},
    }
    if not settings.tied:
        params["head_DV"] = draw(head_key, shape[::-1])
    return params


def embed(settings: ModelSettings, params: Params, token_BX: jax.Array) -> jax.Array:
    """Embeddings [B, X, D] in the compute dtype."""
    return params["embed_VD"].astype(jnp.dtype(settings.dtype))[token_BX]


def final_norm(settings: ModelSettings, params: Params, x: jax.Array) -> jax.Array:
    """Final hidden states, which `unembed` reads, from the last block's output."""
    return rms_norm(x, params["norm"]["scale"], eps=settings.norm_eps)


def unembed(settings: ModelSettings, params: Params, hidden: jax.Array) -> jax.Array:
    """Float32 logits `[..., V]` of final hidden states `[..., D]`."""
    head = params["embed_VD"].T if settings.tied else params["head_DV"]
    dtype = jnp.dtype(settings.dtype)
    return jnp.matmul(hidden.astype(dtype), head.astype(dtype), preferred_element_type=jnp.float32)


def stacked_blocks(params: Params) -> Params:
    """The variables of all blocks, stacked over layers: parameters, and adapters if there are."""
    adapters = {ADAPTERS: params[ADAPTERS]} if ADAPTERS in params else {}
    return {"params": params["blocks"]} | adapters


def forward(settings: ModelSettings, params: Params, token_BT: jax.Array) -> jax.Array:
    """Hidden states hidden_BTD of whole rows, teacher-forced; padding at the end is harmless."""
    T = token_BT.shape[1]
    at = angles(settings, jnp.arange(T)[None])

    def mix(query: jax.Array, key: jax.Array, value: jax.Array) -> Mixed:
        return attend_whole(settings, query, key, value), None

    def layer(x_BTD: jax.Array, variables: Params) -> tuple[jax.Array, None]:
        return apply_block(settings, variables, x_BTD, at, mix)[0], None

    x_BTD = constrain(embed(settings, params, token_BT), "rows")
    x_BTD, _ = jax.lax.scan(
        remat(settings, layer), x_BTD, stacked_blocks(params), unroll=settings.layer_unroll
    )
    return final_norm(settings, params, x_BTD)
