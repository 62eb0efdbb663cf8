"""Attention of whole rows and of a cache: kernels and blocks compute what plain XLA does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.config import KEYS
from rapo_jax.model.attention import (
    ATTENTIONS,
    BLOCK,
    KERNELS,
    LayerCache,
    attend,
    attend_written,
    cache_of,
    choose,
    empty_layer,
    kernel_of,
    on_shards,
    padded_positions,
    plain,
    splash,
    write_layer,
)
from rapo_jax.model.sharding import make_mesh, on_mesh
from tests.models import SMALL_MODEL

BIG = dataclasses.replace(SMALL_MODEL, head_width=128, dtype="bfloat16")


@pytest.mark.parametrize(
    ("platform", "name"), [("cpu", "plain"), ("gpu", "cudnn"), ("tpu", "splash")]
)
def test_by_default_a_model_gets_the_kernel_of_the_platform(platform, name):
    assert choose(BIG, platform=platform) == (name, "")


def test_on_this_platform_attention_is_plain():
    assert jax.default_backend() == "cpu" and kernel_of(SMALL_MODEL) is None


def test_a_model_that_the_kernel_cannot_serve_gets_plain_attention_and_a_note():
    narrow = dataclasses.replace(BIG, head_width=20)
    for platform, kernel in (("gpu", "cudnn"), ("tpu", "splash")):
        name, note = choose(narrow, platform=platform)
        assert name == "plain" and f"{kernel} cannot serve" in note and "head_width=20" in note
    name, note = choose(dataclasses.replace(BIG, dtype="float32"), platform="gpu")
    assert name == "plain" and "model.dtype='bfloat16', not 'float32'" in note


@pytest.mark.parametrize(
    ("changes", "platform", "error"),
    [
        ({"attention": "splash"}, "cpu", r"model\.attention='splash': it runs on tpu.* are cpu"),
        ({"attention": "cudnn"}, "tpu", r"model\.attention='cudnn': it runs on gpu.* are tpu"),
        ({"attention": "cudnn", "dtype": "float32"}, "gpu", r"='cudnn': .*dtype='bfloat16'"),
        ({"attention": "splash", "head_width": 20}, "tpu", r"head_width=20: .*multiple of 64"),
    ],
)
def test_a_named_kernel_that_is_not_available_is_refused(changes, platform, error):
    with pytest.raises(ValueError, match=error):
        choose(dataclasses.replace(BIG, **changes), platform=platform)


def test_config_offers_all_kernels():
    assert tuple(KEYS["model.attention"].choices) == ATTENTIONS


def rows_of(*, positions, heads, kv_heads, width, dtype):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.standard_normal((2, positions, count, width)), dtype)
        for count in (heads, kv_heads, kv_heads)
    )


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-5), ("bfloat16", 4e-2)])
def test_splash_attention_is_plain_attention_and_so_is_its_gradient(dtype, atol):
    rows = rows_of(positions=200, heads=4, kv_heads=2, width=64, dtype=dtype)  # padded to 256

    def both(attend):
        def total(*rows):
            mixed = attend(*rows).astype(jnp.float32)
            return (mixed * jnp.cos(jnp.arange(mixed.size)).reshape(mixed.shape)).sum(), mixed

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*rows)

    found, wanted = both(lambda *rows: splash(*rows, interpret=True)), both(plain)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        left, right = np.float32(left), np.float32(right)
        np.testing.assert_allclose(left, right, atol=atol * np.abs(right).max())


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_kernel_on_a_mesh_gets_the_local_rows_and_heads(kv_heads):
    rows = rows_of(positions=8, heads=4, kv_heads=kv_heads, width=4, dtype="float32")
    shapes = []

    def kernel(query, key, value):
        shapes.append((query.shape, key.shape))
        return plain(query, key, value)

    @jax.jit
    def sharded(*rows):
        with on_mesh(make_mesh(data=1, fsdp=2, tensor=4)):
            return on_shards(kernel, *rows)

    mesh_rows = jax.device_put(
        rows,
        jax.sharding.NamedSharding(
            make_mesh(data=1, fsdp=2, tensor=4), jax.sharding.PartitionSpec()
        ),
    )
    np.testing.assert_allclose(sharded(*mesh_rows), jax.jit(plain)(*rows), atol=1e-6)
    assert shapes == [((1, 8, 1, 4), (1, 8, 1, 4))]


WRITTEN, POSITIONS = 4, 3 * BLOCK
attending = jax.jit(attend_written)


def written(*, X, dtype="float32", heads=4, kv_heads=2, width=6, seed=0):
    """(queries, cache full of rubbish beyond each row's end, first position of each row's X)"""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    key, value = (draw(WRITTEN, POSITIONS, kv_heads, width) for _ in range(2))
    start_B = jnp.asarray(rng.integers(0, POSITIONS - X + 1, WRITTEN), jnp.int32)
    start_B = start_B.at[0].set(0).at[1].set(BLOCK - X)  # an empty row, and one block's end
    return draw(WRITTEN, X, heads, width), cache_of(key, value), start_B


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("X", "heads", "kv_heads"), [(1, 4, 2), (7, 4, 1), (1, 3, 3)])
def test_attention_over_what_is_written_is_plain_attention(X, heads, kv_heads, dtype, atol):
    for seed in range(3):
        query, layer, start_B = written(X=X, heads=heads, kv_heads=kv_heads, dtype=dtype, seed=seed)
        longest = start_B.max() + X
        found = attending(query, layer, first=0, start_B=start_B, longest=longest)
        position_BX1 = start_B[:, None, None] + jnp.arange(X)[:, None]
        wanted = attend(query, *layer, jnp.arange(POSITIONS) <= position_BX1)
        assert found.dtype == query.dtype and found.shape == query.shape
        np.testing.assert_allclose(np.float32(found), np.float32(wanted), atol=atol)


def test_a_whole_row_attended_to_from_the_cache_is_plain_attention():
    rows = rows_of(positions=BLOCK + 9, heads=4, kv_heads=2, width=8, dtype="float32")
    query, key, value = rows
    layer = write_layer(
        empty_layer(WIDE, rows=2, positions=padded_positions(BLOCK + 9)),
        key,
        value,
        first=0,
        start_B=jnp.zeros(2, jnp.int32),
    )
    start_B, longest = jnp.zeros(2, jnp.int32), jnp.int32(BLOCK + 9)
    found = attending(query, layer, first=0, start_B=start_B, longest=longest)
    np.testing.assert_allclose(found, jax.jit(plain)(*rows), atol=1e-6)


WIDE = dataclasses.replace(SMALL_MODEL, kv_heads=2, head_width=8)


@pytest.mark.parametrize("X", [1, 7])
def test_positions_beyond_a_rows_end_change_no_bit_of_its_result(X):
    query, layer, start_B = written(X=X)
    longest = start_B.max() + X
    how = {"first": 0, "start_B": start_B}
    found = attending(query, layer, longest=longest, **how)
    for more in (longest + 1, -(-longest // BLOCK) * BLOCK, POSITIONS):
        np.testing.assert_array_equal(found, attending(query, layer, longest=more, **how))
    for row in range(WRITTEN):  # the end of the row itself, whatever others need
        end = start_B[row] + X
        alone = attending(query, layer, longest=end, **how)
        np.testing.assert_array_equal(alone[row], found[row])
        beyond_T = jnp.arange(POSITIONS) >= end
        rubbish = LayerCache(
            jnp.where(beyond_T, 1e4, layer.key_BKHT),
            jnp.where(beyond_T[:, None], -1e4, layer.value_BKTH),
        )
        other = attending(query, rubbish, longest=longest, **how)
        np.testing.assert_array_equal(other[row], found[row])


def test_a_row_is_attended_to_by_its_number():
    query, layer, start_B = written(X=7)
    whole = attending(query, layer, first=0, start_B=start_B, longest=start_B.max() + 7)
    for row in range(WRITTEN):
        one = slice(row, row + 1)
        how = {"first": row, "start_B": start_B[one], "longest": start_B[row] + 7}
        np.testing.assert_allclose(attending(query[one], layer, **how)[0], whole[row], atol=1e-6)


def test_keys_and_values_are_written_where_they_belong_and_nowhere_else():
    rng, (_, layer, _) = np.random.default_rng(1), written(X=1)
    new = tuple(jnp.float32(rng.standard_normal((WRITTEN, 5, 2, 6))) for _ in range(2))
    start_B = jnp.array([0, 2, BLOCK - 2, POSITIONS - 5])

    def check(found, rows):
        wanted = jax.tree.map(np.array, layer)
        for b in rows:
            place = slice(int(start_B[b]), int(start_B[b]) + 5)
            wanted.key_BKHT[b, :, :, place] = new[0][b].transpose(1, 2, 0)
            wanted.value_BKTH[b, :, place] = new[1][b].transpose(1, 0, 2)
        for left, right in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(left, right)

    check(write_layer(layer, *new, first=0, start_B=start_B), range(WRITTEN))
    for row in range(WRITTEN):
        one = slice(row, row + 1)
        part = (x[one] for x in new)
        check(write_layer(layer, *part, first=row, start_B=start_B[one]), [row])


def test_scoring_and_prefill_lower_to_the_kernels_forwards_and_backwards():
    """For CUDA without cuDNN: lowering only needs its version."""
    line = [sys.executable, "-c", LOWER, *KERNELS]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["cudnn 1 1 1", "splash 1 2 1"]


LOWER = """
import dataclasses, sys
from types import SimpleNamespace

import jax, jax.numpy as jnp, numpy as np
from jax._src.cudnn import fused_attention_stablehlo
from rapo_jax.model.scoring import score
from rapo_jax.model.decoding import prefill, sampling_copy
from rapo_jax.model.transformer import init_params
from tests.models import SMALL_MODEL

fused_attention_stablehlo.cuda_versions = SimpleNamespace(cudnn_get_version=lambda: 91000)
token_BT = jax.ShapeDtypeStruct((2, 32), np.int32)

for name in sys.argv[1:]:
    model = dataclasses.replace(SMALL_MODEL, head_width=64, dtype="bfloat16", attention=name)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def lowered(function, *arguments):
        platform = {"cudnn": "cuda", "splash": "tpu"}[name]
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    gradient = lowered(jax.grad(lambda p, t: score(model, p, t)[0].sum()), params, token_BT)
    copy = jax.eval_shape(lambda p: sampling_copy(model, p), params)
    filled = lowered(lambda p, t: prefill(model, p, t), copy, token_BT)
    if name == "cudnn":
        forwards, backwards = "__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("
        print(name, gradient.count(forwards), gradient.count(backwards), filled.count(forwards))
    else:
        call, back = "tpu_custom_call", ("splash_mha_dq", "splash_mha_dkv")
        print(name, int(gradient.count(call) > 0), sum(gradient.count(b) > 0 for b in back),
              int(filled.count(call) > 0))
"""
