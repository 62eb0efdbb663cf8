"""Attention of whole rows: the choice of a kernel, and that kernels compute what plain XLA does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.config import KEYS
from rapo_jax.model.attention import KERNELS, choose, kernel_of
from rapo_jax.model.sharding import make_mesh, on_mesh
from rapo_jax.model.whole_attention import kv_heads_split, on_shards, plain, splash
from tests.models import SMALL_MODEL

BIG = dataclasses.replace(SMALL_MODEL, head_width=128, dtype="bfloat16")


@pytest.mark.parametrize(
    ("platform", "name"), [("cpu", "plain"), ("gpu", "cudnn"), ("tpu", "splash")]
)
def test_by_default_a_model_gets_the_kernel_of_the_platform(platform, name):
    choice = choose(BIG, platform=platform)
    assert (choice.name, choice.note) == (name, "")


def test_on_this_platform_attention_is_plain():
    assert jax.default_backend() == "cpu" and kernel_of(SMALL_MODEL) is None


def test_a_model_that_the_kernel_cannot_serve_gets_plain_attention_and_a_note():
    narrow = dataclasses.replace(BIG, head_width=20)
    for platform, kernel in (("gpu", "cudnn"), ("tpu", "splash")):
        name, _, note = choose(narrow, platform=platform)
        assert name == "plain" and f"{kernel} cannot serve" in note and "head_width=20" in note
    name, _, note = choose(dataclasses.replace(BIG, dtype="float32"), platform="gpu")
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
    assert tuple(KEYS["model.attention"].choices) == ("auto", "plain", *KERNELS)


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
            query, key, value = rows
            key, value = kv_heads_split(key), kv_heads_split(value)
            return on_shards(kernel, "BTNH,BTKH,BTKH->BTNH", query, key, value)

    mesh_rows = jax.device_put(
        rows,
        jax.sharding.NamedSharding(
            make_mesh(data=1, fsdp=2, tensor=4), jax.sharding.PartitionSpec()
        ),
    )
    np.testing.assert_allclose(sharded(*mesh_rows), jax.jit(plain)(*rows), atol=1e-6)
    assert shapes == [((1, 8, 1, 4), (1, 8, 1, 4))]


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
