"""Adapters change nothing at first, and compute the same beside a weight or merged into it."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.config import LORA_TARGETS, LoraSettings
from rapo_jax.config.read import read_settings
from rapo_jax.model.lora import (
    ADAPTERS,
    attach,
    detach,
    identity,
    init_adapters,
    merged,
    trained,
    with_trained,
)
from rapo_jax.model.sharding import compute_copy, layout, make_mesh, rows
from rapo_jax.model.transformer import forward, init_params, unembed
from tests.models import SMALL_MODEL

MODEL = dataclasses.replace(
    SMALL_MODEL,
    layers=2,
    lora=LoraSettings(rank=3, alpha=6.0, targets=tuple(LORA_TARGETS), merge=False),
)
TOKENS = np.random.default_rng(0).integers(0, MODEL.vocab, (3, 9), np.int32)


def base_of(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), shapes)


def shaken(model, size=0.2):
    """Parameters whose adapters all matter."""
    rng = np.random.default_rng(1)
    adapters = init_adapters(model, jax.random.key(0))
    return attach(
        model,
        base_of(model),
        jax.tree.map(lambda x: np.float32(size * rng.standard_normal(x.shape)), adapters),
    )


def logits(model, params):
    program = jax.jit(lambda p, x: unembed(model, p, forward(model, p, x)))
    return np.asarray(program(params, TOKENS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_change_no_bit_of_a_logit(dtype):
    model = dataclasses.replace(MODEL, dtype=dtype)
    base = compute_copy(model, base_of(model))
    params = attach(model, base, init_adapters(model, jax.random.key(0)))
    assert any(leaf.any() for leaf in jax.tree.leaves(params[ADAPTERS]))
    np.testing.assert_array_equal(logits(model, params), logits(model, base))


def test_adapters_beside_a_weight_compute_the_same_as_merged_ones():
    params = shaken(MODEL)
    apart = logits(MODEL, params)
    assert np.abs(apart - logits(MODEL, detach(params))).max() > 0.1
    np.testing.assert_allclose(logits(MODEL, merged(MODEL, params)), apart, atol=2e-5)
    kernel = params["blocks"]["up"]["kernel"][1].astype(np.float64)
    a, b = (params[ADAPTERS]["up"][part][1].astype(np.float64) for part in ("a", "b"))
    found = merged(MODEL, params)["blocks"]["up"]["kernel"][1]
    np.testing.assert_allclose(found, kernel + 6.0 / 3 * a @ b, atol=1e-6)


@pytest.mark.parametrize("target", LORA_TARGETS)
def test_every_target_alone_has_an_effect(target):
    model = dataclasses.replace(MODEL, lora=dataclasses.replace(MODEL.lora, targets=(target,)))
    params = shaken(model)
    assert list(params[ADAPTERS]) == [LORA_TARGETS[target]]
    hidden = partial(forward, model)
    found, base = (hidden(p, TOKENS[:1, :4]) for p in (params, detach(params)))
    assert np.abs(found - base).max() > 1e-3


def test_the_base_has_the_compute_dtype_and_adapters_float32():
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    params = shaken(model)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(params[ADAPTERS])}
    assert kinds == {"float32"}
    assert params["blocks"]["query"]["kernel"].dtype == jnp.bfloat16
    assert params["blocks"]["ffn_norm"]["scale"].dtype == np.float32
    assert trained(params) == {ADAPTERS: params[ADAPTERS]}
    assert trained(detach(params)).keys() == detach(params).keys()
    assert with_trained(params, {ADAPTERS: {}}) == params | {ADAPTERS: {}}


def test_a_small_change_is_lost_when_it_is_added_into_a_bfloat16_weight():
    """Why sampling keeps adapters apart unless model.lora.merge says otherwise."""
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    params = shaken(model, size=2e-3)  # changes of about 1e-5 to weights of about 0.3
    copy = compute_copy(model, merged(model, params))
    same = [
        float((copy["blocks"][name]["kernel"] == params["blocks"][name]["kernel"]).mean())
        for name in LORA_TARGETS.values()
    ]
    assert min(same) > 0.9


def test_the_identity_of_a_base_depends_on_its_bits_and_not_on_its_sharding():
    params = shaken(MODEL)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    spread = jax.device_put(params, layout(mesh, MODEL, params, name="training"))
    number = jax.jit(identity)
    first = np.asarray(number(params))
    np.testing.assert_array_equal(number(spread), first)
    other = jax.tree.map(np.array, params)
    kernel = other["blocks"]["gate"]["kernel"]
    kernel[0, 0, [0, 1]] = kernel[0, 0, [1, 0]]  # two values change places
    assert (np.asarray(number(other)) != first).sum() == 1
    adapters = jax.tree.map(lambda x: x + 1, params[ADAPTERS])
    np.testing.assert_array_equal(number(params | {ADAPTERS: adapters}), first)


def test_adapters_are_split_as_their_kernels_are():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    where = layout(mesh, MODEL, shaken(MODEL), name="training")[ADAPTERS]
    specs = {name: (tuple(pair["a"].spec), tuple(pair["b"].spec)) for name, pair in where.items()}
    assert specs["query"] == ((None, "fsdp", None), (None, None, "tensor"))
    assert specs["down"] == ((None, "tensor", None), (None, None, "fsdp"))
    assert rows(mesh).spec[0] == ("data", "fsdp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, r"model\.lora\.rank=-1: must be at least 0"),
        ({"alpha": 0.0}, r"model\.lora\.alpha=0\.0: must be more than 0"),
        ({"targets": ("q", "ups")}, r"model\.lora\.targets='ups': .*did you mean 'up'"),
        ({"targets": ("q", "q")}, r"model\.lora\.targets=\('q', 'q'\): name each kernel .* once"),
        ({"targets": ()}, r"model\.lora\.targets=\(\): name each kernel"),
    ],
)
def test_invalid_adapter_settings_are_refused_by_their_key(small_config, changes, message):
    config = small_config({f"model.lora.{key}": value for key, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        read_settings(config)


def test_a_rank_that_saves_nothing_is_refused():
    lora = LoraSettings(rank=8, alpha=1.0, targets=("q", "k"), merge=False)
    with pytest.raises(ValueError, match=r"model\.lora\.rank=8: target 'k' is a 16 x 8 matrix"):
        init_adapters(dataclasses.replace(SMALL_MODEL, lora=lora), jax.random.key(0))


def test_config_names_the_kernels_that_blocks_have():
    assert set(LORA_TARGETS.values()) < set(base_of(MODEL)["blocks"])
