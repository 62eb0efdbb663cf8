"""Causal grouped-query attention: in plain XLA, or by a fused kernel of the platform.

`attend` is plain XLA and takes any mask; decoding always uses it. Scoring, training and prefill
read whole rows from their start; there `model.attention` may name a fused kernel, which never
writes the attention scores to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.sharding import ambient_mesh, spec_of

LANES = 128
"""Smallest block of splash attention: rows are padded to a multiple of it."""
LARGEST_BLOCK = 512


def attend(
    query_BXNH: jax.Array, key_BKHT: jax.Array, value_BKTH: jax.Array, visible_BXT: jax.Array
) -> jax.Array:
    """Grouped-query attention of X queries over the T tokens that are True in `visible_BXT`.

    Scores and softmax are float32. Keys come with their positions innermost: on CPU that is several
    times faster than the layout of the projections, and it is how the cache stores them.
    """
    B, X, N, H = query_BXNH.shape
    K, T = key_BKHT.shape[1], key_BKHT.shape[3]
    # The X * N/K queries of one kv head as one axis, so that both products are plain matmuls. By
    # einsum: jnp.matmul, and with it the compiled program's gradient, rounds otherwise.
    query = query_BXNH.reshape(B, X, K, N // K, H).swapaxes(1, 2).reshape(B, K, -1, H)
    score = jnp.einsum("BKXH,BKHT->BKXT", query, key_BKHT, preferred_element_type=jnp.float32)
    score = score.reshape(B, K, X, N // K, T)
    score = jnp.where(visible_BXT[:, None, :, None], score * H**-0.5, jnp.finfo(jnp.float32).min)
    weight = jax.nn.softmax(score, axis=-1).astype(value_BKTH.dtype)
    mixed = jnp.einsum("BKXT,BKTH->BKXH", weight.reshape(B, K, -1, T), value_BKTH)
    return mixed.reshape(B, K, X, N // K, H).swapaxes(1, 2).reshape(B, X, N, H)


def plain(query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array) -> jax.Array:
    """Causal `attend` on whole rows."""
    key_BKHT, value_BKTH = key_BTKH.transpose(0, 2, 3, 1), value_BTKH.transpose(0, 2, 1, 3)
    return attend(query_BTNH, key_BKHT, value_BKTH, causal_mask(query_BTNH.shape[1]))


def causal_mask(T: int) -> jax.Array:
    """visible_1TT of whole rows: each token sees itself and those before it."""
    return jnp.tril(jnp.ones((T, T), bool))[None]


def splash(
    query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Pallas' splash attention for TPUs; `interpret` emulates it on other devices, slowly.

    Rows are padded at their end, which the causal mask hides from every token.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    _, T, N, H = query_BTNH.shape
    padding = -T % LANES
    slots = T + padding
    block = next(b for b in range(LARGEST_BLOCK, 0, -LANES) if slots % b == 0)
    scaled_BTNH = (query_BTNH.astype(jnp.float32) * H**-0.5).astype(query_BTNH.dtype)
    query_BNTH, key_BKTH, value_BKTH = (
        jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (scaled_BTNH, key_BTKH, value_BTKH)
    )
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([pallas.CausalMask((slots, slots))] * N),
        block_sizes=pallas.BlockSizes(
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


def _cudnn_refuses(settings: ModelSettings) -> str:
    if settings.dtype != "bfloat16":
        return f"it needs model.dtype='bfloat16', not {settings.dtype!r}"
    if settings.head_width % 8 or settings.head_width > 128:
        return f"model.head_width={settings.head_width}: it needs a multiple of 8 up to 128"
    return ""


def _splash_refuses(settings: ModelSettings) -> str:
    if settings.head_width % 64:
        return f"model.head_width={settings.head_width}: it needs a multiple of 64"
    return ""


class Kernel(NamedTuple):
    """A fused causal attention of one platform, for rows of any length."""

    attend: Callable[..., jax.Array]
    """(query_BTNH, key_BTKH, value_BTKH) -> mixed_BTNH."""
    platforms: tuple[str, ...]
    refuses: Callable[[ModelSettings], str]
    """Why the kernel cannot compute this model's attention; '' if it can."""


_cudnn = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
KERNELS: Mapping[str, Kernel] = {
    "cudnn": Kernel(_cudnn, ("gpu", "cuda"), _cudnn_refuses),
    "splash": Kernel(splash, ("tpu",), _splash_refuses),
}
ATTENTIONS = ("auto", "plain", *KERNELS)


class Choice(NamedTuple):
    """The attention of whole rows that a run uses."""

    name: str
    """'plain', or a key of KERNELS."""
    note: str
    """For the start-up log: why the platform's kernel is not used; '' if it is, or has none."""


def choose(settings: ModelSettings, *, platform: str) -> Choice:
    """What `model.attention` means for devices of `platform` (cpu, gpu, tpu).

    Raises:
        ValueError: it names a kernel that this platform or this model cannot have.
    """
    wanted = name = settings.attention
    if wanted == "auto":
        name = next((name for name, k in KERNELS.items() if platform in k.platforms), "plain")
    if name == "plain":
        return Choice(name, "")
    kernel = KERNELS[name]
    if platform not in kernel.platforms:
        raise ValueError(
            f"model.attention={name!r}: it runs on {kernel.platforms[0]}, and the devices are "
            f"{platform}; set it to 'auto'"
        )
    reason = kernel.refuses(settings)
    if reason and wanted != "auto":
        raise ValueError(f"model.attention={name!r}: {reason}; or set it to 'auto'")
    if reason:
        note = f"model.attention='auto': plain attention, because {name} cannot serve this model: "
        return Choice("plain", note + reason)
    return Choice(name, "")


def kernel_of(settings: ModelSettings) -> Kernel | None:
    """The fused kernel for whole rows; None for plain attention.

    'auto' means jax's default platform; to compile for another platform, name the kernel.
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
    """Runs `kernel` on each device's rows and heads: the compiler cannot partition a kernel.

    Kv heads that the tensor axis does not divide are repeated for each query head, so that each
    device has the kv heads of its query heads.
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
