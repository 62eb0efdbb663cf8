"""Causal grouped-query attention: in plain XLA, or by a fused kernel of the platform.

`attend_whole` is that of whole rows, which scoring, training and prefill read from their start;
there `model.attention` may name a fused kernel, which never writes the attention scores to memory.
`attend_written` is that of decoding, over the written part of a KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.sharding import ambient_mesh, spec_of

BLOCK = 128
"""Positions of a cache that are attended to at a time, see `attend_written`."""
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


def attend_whole(
    settings: ModelSettings, query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array
) -> jax.Array:
    """Causal attention of whole rows, as `model.attention` says."""
    kernel = kernel_of(settings)
    if kernel is None:
        return plain(query_BTNH, key_BTKH, value_BTKH)
    return on_shards(kernel.attend, query_BTNH, key_BTKH, value_BTKH)


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
    spec = spec_of(mesh, "rows", None, "heads")
    return jax.shard_map(
        kernel,
        mesh=mesh,
        axis_names=set(mesh.auto_axes),
        in_specs=(spec,) * 3,
        out_specs=spec,
        check_vma=False,
    )(query_BTNH, key_BTKH, value_BTKH)


class LayerCache(NamedTuple):
    """Keys and values of one layer; place t of a row holds its position t."""

    key_BKHT: jax.Array
    value_BKTH: jax.Array


def padded_positions(positions: int) -> int:
    """Positions of a cache: whole blocks."""
    return -(-positions // BLOCK) * BLOCK


def empty_layer(settings: ModelSettings, rows: int, positions: int) -> LayerCache:
    K, H, dtype = settings.kv_heads, settings.head_width, jnp.dtype(settings.dtype)
    return LayerCache(
        jnp.zeros((rows, K, H, positions), dtype), jnp.zeros((rows, K, positions, H), dtype)
    )


def cache_of(key_BXKH: jax.Array, value_BXKH: jax.Array) -> LayerCache:
    """The cache of rows that have just these keys and values."""
    return LayerCache(key_BXKH.transpose(0, 2, 3, 1), value_BXKH.transpose(0, 2, 1, 3))


def write_layer(
    layer: LayerCache,
    key_BXKH: jax.Array,
    value_BXKH: jax.Array,
    *,
    first: jax.Array | int,
    start_B: jax.Array,
) -> LayerCache:
    """Writes X positions of rows `first`, `first + 1`, ... from `start_B`, which must have room."""
    new = cache_of(key_BXKH, value_BXKH)
    if len(start_B) == 1:
        start = start_B[0]
        return LayerCache(
            jax.lax.dynamic_update_slice(layer.key_BKHT, new.key_BKHT, (first, 0, 0, start)),
            jax.lax.dynamic_update_slice(layer.value_BKTH, new.value_BKTH, (first, 0, start, 0)),
        )

    def put(old: jax.Array, fresh: jax.Array, axis: int) -> jax.Array:
        def row(old: jax.Array, fresh: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, fresh, start, axis)

        return jax.vmap(row)(old, fresh, start_B)

    return LayerCache(
        put(layer.key_BKHT, new.key_BKHT, 2), put(layer.value_BKTH, new.value_BKTH, 1)
    )


def attend_written(
    query_BXNH: jax.Array,
    layer: LayerCache,
    *,
    first: jax.Array | int,
    start_B: jax.Array,
    longest: jax.Array,
) -> jax.Array:
    """Attention of X queries, at positions from `start_B` on, over positions below `longest`.

    The rows are `first`, `first + 1`, ... of the cache. Blocks of positions are attended to one
    after another with a running softmax, so that the cost follows the longest row, not the
    allocation. A block beyond a row's end leaves its result as it is, bit for bit. Scores, softmax
    and sums are float32.
    """
    B, X, N, H = query_BXNH.shape
    K = layer.key_BKHT.shape[1]
    query_BKXH = query_BXNH.reshape(B, X, K, N // K, H).swapaxes(1, 2).reshape(B, K, -1, H)
    position_BX = start_B[:, None] + jnp.arange(X)
    position_BX = jnp.repeat(position_BX, N // K, axis=1)  # of the queries of one kv head

    def block(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest_BKX1, total_BKX1, mixed_BKXH = sums
        at = index * BLOCK
        key_BKHT = jax.lax.dynamic_slice(layer.key_BKHT, (first, 0, 0, at), (B, K, H, BLOCK))
        value_BKTH = jax.lax.dynamic_slice(layer.value_BKTH, (first, 0, at, 0), (B, K, BLOCK, H))
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
    _, total_BKX1, mixed_BKXH = jax.lax.fori_loop(0, -(-longest // BLOCK), block, sums)
    mixed = (mixed_BKXH / total_BKX1).astype(query_BXNH.dtype)
    return mixed.reshape(B, K, X, N // K, H).swapaxes(1, 2).reshape(B, X, N, H)
