"""Decoding by kernels: which one, and that it computes what attention in blocks does."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from rapo_jax.model.attention import cache_form, choose
from rapo_jax.model.cached_attention import BLOCK, FORMS, attend_cached
from rapo_jax.model.decoding import empty_cache, extend, sampling_copy
from rapo_jax.model.decoding_kernels import PAGE, cudnn
from rapo_jax.model.sharding import make_mesh, on_mesh
from rapo_jax.model.transformer import init_params
from tests.models import SMALL_MODEL

BIG = dataclasses.replace(SMALL_MODEL, head_width=128, dtype="bfloat16")
ATOL = {"float32": 2e-6, "bfloat16": 2e-2}
LENGTHS = (0, 1, BLOCK, PAGE + 5, 0, 2 * PAGE, 300)
ALLOCATED = 2 * PAGE
TICKS = FORMS | {
    # the same call without cuDNN: that lengths and heads are passed rightly
    "cudnn": FORMS["cudnn"]._replace(tick=partial(cudnn, implementation="xla"))
}


@pytest.mark.parametrize(
    ("platform", "form"), [("cpu", "blocks"), ("gpu", "cudnn"), ("tpu", "paged")]
)
def test_by_default_a_cache_has_the_form_of_the_platform(platform, form):
    assert choose(BIG, platform=platform).form == form


@pytest.mark.parametrize(
    ("changes", "platform", "form", "note"),
    [
        ({"dtype": "float32"}, "gpu", "plain", r"'auto': plain.*model\.dtype='bfloat16'"),
        ({"dtype": "float32"}, "tpu", "blocks", r"'auto': splash.*paged.*dtype='bfloat16'"),
        ({"head_width": 64}, "tpu", "blocks", r"head_width=64: it needs a multiple of 128"),
        ({"head_width": 64, "attention": "splash"}, "tpu", "blocks", r"'splash': splash .*=64"),
        ({"head_width": 20}, "tpu", "blocks", "splash cannot serve"),
        ({"attention": "plain"}, "gpu", "plain", "^$"),
        ({"attention": "plain"}, "tpu", "blocks", "^$"),
    ],
)
def test_a_model_that_the_kernel_cannot_serve_gets_plain_decoding_and_a_note(
    changes, platform, form, note
):
    choice = choose(dataclasses.replace(BIG, **changes), platform=platform)
    assert choice.form == form and re.search(note, choice.note)


def layers_of(*, kv_heads, width, dtype):
    """A cache in every form, with the same random keys and values, and garbage behind them."""
    rng = np.random.default_rng(0)
    shape = (len(LENGTHS), ALLOCATED, kv_heads, width)
    key, value = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    return {name: form.layer(key, value) for name, form in TICKS.items()}


def queries(*, rows, count, heads, width, dtype):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((rows, count, heads, width)), dtype)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (8, 2), (8, 1), (14, 2)])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("plain", "float32"),
        ("plain", "bfloat16"),
        ("cudnn", "float32"),
        ("cudnn", "bfloat16"),
        ("paged", "bfloat16"),  # it rounds keys and values of float32
    ],
)
def test_a_tick_of_every_form_is_that_of_the_blocks(name, heads, kv_heads, dtype):
    layers = layers_of(kv_heads=kv_heads, width=128, dtype=dtype)
    query = queries(rows=len(LENGTHS), count=1, heads=heads, width=128, dtype=dtype)
    length_B = jnp.array(LENGTHS)
    start_B = jnp.maximum(length_B - 1, 0)

    def tick(name):
        call = jax.jit(partial(attend_cached, TICKS[name], row_B=None))
        return np.float32(call(query, layers[name], start_B=start_B, length_B=length_B))

    wanted = tick("blocks")
    with pltpu.force_tpu_interpret_mode():
        mixed = tick(name)
    busy = np.array(LENGTHS) > 0
    assert np.isfinite(mixed).all()
    np.testing.assert_allclose(mixed[busy], wanted[busy], atol=ATOL[dtype])


@pytest.mark.parametrize("name", ["plain", "cudnn", "paged"])
def test_chunks_of_some_rows_are_read_from_every_form(name):
    layers = layers_of(kv_heads=2, width=16, dtype="float32")
    query = queries(rows=2, count=9, heads=4, width=16, dtype="float32")

    def chunks(name, *rows):
        start_B = jnp.array([PAGE - 4, 3])[: len(rows)]
        call = partial(attend_cached, TICKS[name], query[: len(rows)], layers[name])
        return jax.jit(call)(row_B=jnp.array(rows), start_B=start_B, length_B=start_B + 9)

    for rows in ([0], [3], [3, 1]):
        np.testing.assert_allclose(chunks(name, *rows), chunks("blocks", *rows), atol=2e-6)


@pytest.mark.parametrize(("kv_heads", "stored"), [(1, 4), (2, 4), (4, 4)])
def test_under_the_tensor_axis_a_kernel_gets_the_kv_heads_of_its_query_heads(
    kv_heads, stored, monkeypatch
):
    """And a cache stores kv heads repeatedly where the axis does not divide them."""
    shapes = []

    def tick(query_BNH, key, value, length_B):
        shapes.append((query_BNH.shape, key.shape))
        return cudnn(query_BNH, key, value, length_B, implementation="xla")

    form = FORMS["cudnn"]._replace(tick=tick)
    model = dataclasses.replace(SMALL_MODEL, heads=8, kv_heads=kv_heads)
    params = sampling_copy(model, init_params(model, jax.random.key(0)))
    token_UX = np.random.default_rng(0).integers(0, model.vocab, (4, 6))

    def decoded(params, token_UX):
        """Five tokens read as chunks, row by row, and one more in each row at once."""
        start_B = jnp.full(4, 5)
        cache = empty_cache(model, rows=4, positions=8)
        for u in range(4):
            part_1X, zero_1 = token_UX[u : u + 1, :5], jnp.zeros(1, jnp.int32)
            how = {"row_B": jnp.array([u]), "length_B": zero_1 + 5}
            _, cache = extend(model, params, cache, part_1X, zero_1, **how)
        last_UX = token_UX[:, 5:]
        return extend(model, params, cache, last_UX, start_B, length_B=start_B + 1)[0]

    wanted = jax.jit(decoded)(params, token_UX)
    monkeypatch.setattr("rapo_jax.model.decoding.cache_form", lambda _: form)
    mesh = make_mesh(data=1, fsdp=2, tensor=4)

    @jax.jit
    def sharded(params, token_UX):
        with on_mesh(mesh):
            return decoded(params, token_UX)

    everywhere = NamedSharding(mesh, PartitionSpec())
    mixed = sharded(*jax.device_put((params, token_UX), everywhere))
    np.testing.assert_allclose(mixed, wanted, atol=2e-6)
    H, T = model.head_width, BLOCK
    assert set(shapes) == {((2, 2, H), (2, T, stored // 4, H))}


def test_decoding_on_this_platform_reads_blocks():
    assert cache_form(SMALL_MODEL) is FORMS["blocks"]


def test_decoding_lowers_to_the_kernels_of_gpus_and_tpus():
    """For CUDA without cuDNN: lowering only needs its version."""
    line = [sys.executable, "-c", LOWER]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["cudnn 1 0", "splash 1 0"]


LOWER = """
import dataclasses
from types import SimpleNamespace

import jax, jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo
from rapo_jax.model.decoding import empty_cache, extend, sampling_copy
from rapo_jax.model.transformer import init_params
from tests.models import SMALL_MODEL

fused_attention_stablehlo.cuda_versions = SimpleNamespace(cudnn_get_version=lambda: 91000)
for name, platform, call in (
    ("cudnn", "cuda", "__cudnn$fmhaSoftmax("), ("splash", "tpu", "tpu_custom_call")
):
    model = dataclasses.replace(
        SMALL_MODEL, layers=1, head_width=128, dtype="bfloat16", attention=name
    )
    params = jax.eval_shape(lambda: sampling_copy(model, init_params(model, jax.random.key(0))))
    cache = jax.eval_shape(lambda: empty_cache(model, rows=3, positions=64))

    def lowered(rows, count):
        def run(params, cache, token_BX, start_B):
            row_B = None if rows == 3 else jnp.arange(rows)
            return extend(
                model, params, cache, token_BX, start_B, row_B=row_B, length_B=start_B + 1
            )

        token_BX = jax.ShapeDtypeStruct((rows, count), "int32")
        start_B = jax.ShapeDtypeStruct((rows,), "int32")
        traced = jax.jit(run).trace(params, cache, token_BX, start_B)
        return traced.lower(lowering_platforms=(platform,))

    print(name, *(lowered(*shape).as_text().count(call) for shape in ((3, 1), (1, 4))))
"""
