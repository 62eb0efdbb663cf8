"""Causal grouped-query attention of whole rows: in plain XLA, and by splash attention.

Fused kernels never write the attention scores to memory. The compiler cannot partition them:
`on_shards` runs them on each device's rows and heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rapo_jax.model.sharding import ambient_mesh, spec_of

LANES = 128
"""Smallest block of splash attention: rows are padded to a multiple of it."""
LARGEST_BLOCK = 512
SPLIT_AXES: Mapping[str, str] = {"B": "rows", "N": "heads", "K": "heads"}
"""Axis letter of a kernel's array -> logical axis; the others are not split."""


def attend(
    query_BXNH: jax.Array, key_BKHT: jax.Array, value_BKTH: jax.Array, visible_BXT: jax.Array
) -> jax.Array:
    """Grouped-query attention of X queries over the T tokens that are True in `visible_BXT`.

    Scores and softmax are float32. Keys come with their positions innermost: on CPU that is several
    times faster than the layout of the projections.
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
    T = query_BTNH.shape[1]
    return attend(query_BTNH, key_BKHT, value_BKTH, jnp.tril(jnp.ones((T, T), bool))[None])


def splash(
    query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Pallas' splash attention for TPUs; `interpret` emulates it on other devices, slowly.

    Rows are padded at their end, which the causal mask hides from every token.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    _, T, N, H = query_BTNH.shape
    padding = -T % LANES
    positions = T + padding
    block = next(b for b in range(LARGEST_BLOCK, 0, -LANES) if positions % b == 0)
    scaled_BTNH = (query_BTNH.astype(jnp.float32) * H**-0.5).astype(query_BTNH.dtype)
    query_BNTH, key_BKTH, value_BKTH = (
        jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (scaled_BTNH, key_BTKH, value_BTKH)
    )
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([pallas.CausalMask((positions, positions))] * N),
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


def on_shards(kernel: Callable[..., jax.Array], axes: str, *arrays: jax.Array) -> jax.Array:
    """Runs `kernel` on each device's rows and heads.

    Args:
        axes: of the arrays and the result, such as "BTNH,BTKH,BTKH->BTNH". The tensor axis must
            divide the heads: `kv_heads_split` repeats those of keys and values.
    """
    mesh = ambient_mesh()
    if mesh is None:
        return kernel(*arrays)
    into, out = axes.split("->")

    def spec(letters: str) -> PartitionSpec:
        return spec_of(mesh, *map(SPLIT_AXES.get, letters))

    return jax.shard_map(
        kernel,
        mesh=mesh,
        axis_names=set(mesh.auto_axes),
        in_specs=tuple(map(spec, into.split(","))),
        out_specs=spec(out),
        check_vma=False,
    )(*arrays)


def kv_heads_split(x_BXKH: jax.Array) -> jax.Array:
    """Keys or values for `on_shards`: each kv head repeated until the tensor axis divides them.

    So each device has the kv heads of its query heads, whose number the axis divides.
    """
    mesh, K = ambient_mesh(), x_BXKH.shape[2]
    return x_BXKH if mesh is None else repeat_heads(x_BXKH, math.lcm(K, mesh.shape["tensor"]))


def repeat_heads(x_BXKH: jax.Array, heads: int) -> jax.Array:
    repeats = heads // x_BXKH.shape[2]
    return x_BXKH if repeats == 1 else jnp.repeat(x_BXKH, repeats, axis=2)
