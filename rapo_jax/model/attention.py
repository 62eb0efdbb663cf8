"""Attention: plain in XLA, and by the platform's kernel where whole rows are read from their start.

`attend` is the plain one and takes any mask: decoding uses nothing else. Scoring, training and
prefill see whole rows, where each token sees itself and those before it; there `model.attention`
may name a kernel that never writes the scores to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.sharding import ambient_mesh, spec_of

LANES = 128
"""Slots that splash attention takes at a time, at least: rows are padded to multiples of it."""
LARGEST_BLOCK = 512


def attend(
    query_BXNH: jax.Array, key_BKHT: jax.Array, value_BKTH: jax.Array, seen_BXT: jax.Array
) -> jax.Array:
    """Grouped-query attention; scores and softmax in float32; `seen_BXT` says what is visible.

    Keys come with their positions innermost: on CPU that is several times faster than the layout
    of the projections, and it is how the cache stores them.
    """
    B, X, N, H = query_BXNH.shape
    K, T = key_BKHT.shape[1], key_BKHT.shape[3]
    # Z = X * N/K: the queries of one kv head as one axis, so that both products are plain matmuls.
    query_BKZH = query_BXNH.reshape(B, X, K, N // K, H).swapaxes(1, 2).reshape(B, K, -1, H)
    score = jnp.einsum(
        "BKZH,BKHT->BKZT", query_BKZH, key_BKHT, preferred_element_type=jnp.float32
    ).reshape(B, K, X, N // K, T)
    score = jnp.where(seen_BXT[:, None, :, None], score * H**-0.5, jnp.finfo(jnp.float32).min)
    share = jax.nn.softmax(score, axis=-1).astype(value_BKTH.dtype).reshape(B, K, -1, T)
    mixed_BKZH = jnp.einsum("BKZT,BKTH->BKZH", share, value_BKTH)
    return mixed_BKZH.reshape(B, K, X, N // K, H).swapaxes(1, 2).reshape(B, X, N, H)


def plain(query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array) -> jax.Array:
    """`attend` on whole rows."""
    T = query_BTNH.shape[1]
    seen_1TT = jnp.tril(jnp.ones((T, T), bool))[None]
    return attend(
        query_BTNH, key_BTKH.transpose(0, 2, 3, 1), value_BTKH.transpose(0, 2, 1, 3), seen_1TT
    )


def cudnn(query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array) -> jax.Array:
    """cuDNN's fused attention."""
    return jax.nn.dot_product_attention(
        query_BTNH, key_BTKH, value_BTKH, is_causal=True, implementation="cudnn"
    )


def splash(
    query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Splash attention of Pallas; `interpret` runs it where there is no TPU, slowly.

    Rows are padded at their end, which no token before it sees.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, T, N, H = query_BTNH.shape
    padding = -T % LANES
    slots = T + padding
    block = next(b for b in range(LARGEST_BLOCK, 0, -LANES) if slots % b == 0)
    scaled_BTNH = (query_BTNH.astype(jnp.float32) * H**-0.5).astype(query_BTNH.dtype)
    query_BNTH, key_BKTH, value_BKTH = (
        jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (scaled_BTNH, key_BTKH, value_BTKH)
    )
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((slots, slots))] * N),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    mixed_BNTH = jax.vmap(kernel)(query_BNTH, key_BKTH, value_BKTH)
    return mixed_BNTH[:, :, :T].swapaxes(1, 2).astype(query_BTNH.dtype)


def _cudnn_lacks(settings: ModelSettings) -> str:
    if settings.dtype != "bfloat16":
        return f"it needs model.dtype='bfloat16', not {settings.dtype!r}"
    if settings.head_width % 8 or settings.head_width > 128:
        return f"model.head_width={settings.head_width}: it needs a multiple of 8 up to 128"
    return ""


def _splash_lacks(settings: ModelSettings) -> str:
    if settings.head_width % 64:
        return f"model.head_width={settings.head_width}: it needs a multiple of 64"
    return ""


class Kernel(NamedTuple):
    attend: Callable[..., jax.Array]
    """(query_BTNH, key_BTKH, value_BTKH) -> mixed_BTNH, each token seeing up to itself."""
    platforms: tuple[str, ...]
    lacks: Callable[[ModelSettings], str]
    """Why a model cannot have it, '' if it can. The width of rows does not matter to any."""


KERNELS: Mapping[str, Kernel] = {
    "cudnn": Kernel(cudnn, ("gpu", "cuda"), _cudnn_lacks),
    "splash": Kernel(splash, ("tpu",), _splash_lacks),
}
ATTENTIONS = ("auto", "plain", *KERNELS)


class Choice(NamedTuple):
    name: str
    """'plain', or a key of KERNELS."""
    note: str
    """For the start-up log, where the platform has a kernel that the model cannot have; or ''."""


def choose(settings: ModelSettings, *, platform: str) -> Choice:
    """What `model.attention` means for devices of `platform` (cpu, gpu, tpu).

    Raises:
        ValueError: it names a kernel that this platform or this model cannot have.
    """
    wanted = settings.attention
    if wanted == "auto":
        name = next((name for name, k in KERNELS.items() if platform in k.platforms), "plain")
        lack = KERNELS[name].lacks(settings) if name != "plain" else ""
        if not lack:
            return Choice(name, "")
        note = f"model.attention='auto': plain attention, because {name} cannot serve this model: "
        return Choice("plain", note + lack)
    if wanted != "plain":
        kernel = KERNELS[wanted]
        if platform not in kernel.platforms:
            raise ValueError(
                f"model.attention={wanted!r}: it runs on {kernel.platforms[0]}, and the devices "
                f"are {platform}; set it to 'auto'"
            )
        if lack := kernel.lacks(settings):
            raise ValueError(f"model.attention={wanted!r}: {lack}; or set it to 'auto'")
    return Choice(wanted, "")


def kernel_of(settings: ModelSettings) -> Kernel | None:
    """The kernel of whole rows, None for plain attention.

    'auto' is that of jax's default platform; who compiles for another one names it.
    """
    name = settings.attention
    if name == "auto":
        name = choose(settings, platform=jax.default_backend()).name
    return KERNELS.get(name)


def on_shards(
    kernel: Callable[..., jax.Array],
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
) -> jax.Array:
    """`kernel` on every device's own rows and heads: the compiler cannot cut a kernel itself.

    Kv heads that the tensor axis does not divide are repeated for each query head, so that a
    device's query heads find theirs.
    """
    mesh = ambient_mesh()
    if mesh is None:
        return kernel(query_BTNH, key_BTKH, value_BTKH)
    N, K = query_BTNH.shape[2], key_BTKH.shape[2]
    if K % mesh.shape["tensor"]:
        key_BTKH, value_BTKH = (jnp.repeat(x, N // K, axis=2) for x in (key_BTKH, value_BTKH))
    spec = spec_of("rows", None, "heads")
    return jax.shard_map(kernel, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(
        query_BTNH, key_BTKH, value_BTKH
    )
