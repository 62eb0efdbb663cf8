"""Scoring: teacher-forced log-probs and entropies, the same whole or in chunks of slots."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.model.chunked_log_probs import Positions
from rapo_jax.model.scoring import _chunked_log_probs, log_probs, score
from rapo_jax.model.sharding import layout, make_mesh, on_mesh, place, rows
from rapo_jax.model.transformer import forward, init_params, unembed
from rapo_jax.plan.collectives import collective_bytes
from rapo_jax.plan.programs import placed
from tests.models import SMALL_MODEL

SETTINGS = dataclasses.replace(
    SMALL_MODEL,
    vocab=19,
    width=8,
    ffn=12,
    heads=2,
    kv_heads=1,
    init_scale=0.5,
    score_logits=100_000,
)
B, T = 3, 12
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda leaf: np.float32(0.5 * RNG.standard_normal(leaf.shape)),
    jax.eval_shape(lambda: init_params(SETTINGS, jax.random.key(0))),
)
TOKENS = RNG.integers(0, SETTINGS.vocab, (B, T), np.int32)
WEIGHTS = RNG.standard_normal((2, B, T)).astype(np.float32)


def value_and_grad(chunk):
    """Both results, and the gradient of one weighted sum of them."""
    settings = dataclasses.replace(SETTINGS, score_logits=chunk * B * SETTINGS.vocab)

    def weighted(params):
        found = jnp.stack(score(settings, params, TOKENS))
        return (WEIGHTS * found).sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(PARAMS)
    return np.asarray(found), gradient


@pytest.fixture(scope="module")
def whole():
    return value_and_grad(T)


def test_a_tokens_score_is_its_log_softmax_given_the_tokens_before_it(whole):
    def logits(params, token_BT):
        return unembed(SETTINGS, params, forward(SETTINGS, params, token_BT))

    logits_BTV = np.asarray(jax.jit(logits)(PARAMS, TOKENS), np.float64)
    logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(axis=2, keepdims=True))
    (logp_BT, entropy_BT), _ = whole
    assert not logp_BT[:, 0].any() and not entropy_BT[:, 0].any()
    for t in range(1, T):
        before_BV = logp_BTV[:, t - 1]
        np.testing.assert_allclose(logp_BT[:, t], before_BV[range(B), TOKENS[:, t]], atol=1e-5)
        wanted_B = -(np.exp(before_BV) * before_BV).sum(axis=1)
        np.testing.assert_allclose(entropy_BT[:, t], wanted_B, atol=1e-5)


def test_chunks_change_neither_value_nor_gradient(whole):
    assert (T - 1) % 4  # so the last chunk is padded
    for found, wanted in zip(
        jax.tree.leaves(value_and_grad(4)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_both_are_float32_and_as_long_as_the_row(whole):
    (logp_BT, entropy_BT), _ = whole
    assert logp_BT.dtype == entropy_BT.dtype == jnp.float32
    assert logp_BT.shape == entropy_BT.shape == (B, T)


def temporaries(chunk):
    """Bytes that the gradient of a score needs besides its arguments and results."""
    settings = dataclasses.replace(
        SETTINGS, vocab=LARGE_VOCAB, score_logits=chunk * B * LARGE_VOCAB
    )
    params = jax.eval_shape(lambda: init_params(settings, jax.random.key(0)))
    token_BT = jax.ShapeDtypeStruct((B, LONG), np.int32)

    def both(params, token_BT):
        return jnp.stack(score(settings, params, token_BT)).sum()

    program = jax.jit(jax.grad(both)).lower(params, token_BT).compile()
    return program.memory_analysis().temp_size_in_bytes


LARGE_VOCAB, LONG = 8192, 65


def test_no_array_of_all_slots_times_the_vocabulary_is_ever_in_memory():
    all_slots = B * (LONG - 1) * LARGE_VOCAB * 4
    small, larger, whole = temporaries(2), temporaries(8), temporaries(LONG)
    assert small < all_slots / 4
    assert small < larger < all_slots < whole


@pytest.mark.parametrize("width", [32, 600])
def test_an_update_of_many_rows_never_holds_more_logits_than_allowed(width):
    """Whatever the widths of its micro-batches: short rows are many."""
    settings = dataclasses.replace(SETTINGS, vocab=LARGE_VOCAB, score_logits=16 * LARGE_VOCAB)
    params = jax.eval_shape(lambda: init_params(settings, jax.random.key(0)))
    token_BT = jax.ShapeDtypeStruct((1200 // width, width), np.int32)
    mask_BT = jax.ShapeDtypeStruct(token_BT.shape, bool)

    def summed(params, token_BT, mask_BT):
        return log_probs(settings, params, token_BT, mask_BT).sum()

    text = jax.jit(jax.grad(summed)).lower(params, token_BT, mask_BT).as_text()
    sizes = [
        int(np.prod([int(n) for n in shape.split("x")]))
        for shape in re.findall(rf"tensor<((?:\d+x)*{LARGE_VOCAB})xf32>", text)
    ]
    assert 8 * LARGE_VOCAB < max(sizes) <= settings.score_logits


MASK = RNG.random((B, T)) < 0.4


def masked_value_and_grad(params, token_BT, mask_BT, *, chunk, mesh=None):
    """`log_probs`, and the gradient of one weighted sum of them."""
    settings = dataclasses.replace(SETTINGS, score_logits=chunk * SETTINGS.vocab)
    weight_BT = np.resize(WEIGHTS[0], token_BT.shape)

    def weighted(params):
        with on_mesh(mesh):
            found = log_probs(settings, params, token_BT, mask_BT)
        return (weight_BT * found).sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(params)
    return jax.device_get((found, gradient))


@pytest.mark.parametrize("chunk", [100, 5])
@pytest.mark.parametrize("mask_BT", [MASK, np.ones_like(MASK), np.zeros_like(MASK)])
def test_the_log_probs_of_chosen_tokens_are_those_of_the_score(chunk, mask_BT):
    def weighted(params):
        logp_BT = jnp.where(mask_BT, score(SETTINGS, params, TOKENS)[0], 0)
        return (WEIGHTS[0] * logp_BT).sum(), logp_BT

    (_, logp_BT), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(PARAMS)
    found = masked_value_and_grad(PARAMS, TOKENS, mask_BT, chunk=chunk)
    for left, right in zip(
        jax.tree.leaves(found), jax.tree.leaves((logp_BT, gradient)), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)
    assert not found[0][~mask_BT].any() and not found[0][:, 0].any()


def test_row_shards_choose_their_slots_apart():
    token_BT, mask_BT = (np.tile(x, (4, 1))[:8] for x in (TOKENS, MASK))
    mask_BT[:2] = False  # a shard without any
    alone = masked_value_and_grad(PARAMS, token_BT, mask_BT, chunk=5)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = [place(x, rows(mesh)) for x in (token_BT, mask_BT)]
    params = place(PARAMS, layout(mesh, SETTINGS, PARAMS, name="training"))
    spread = masked_value_and_grad(params, *placed, chunk=5, mesh=mesh)
    for left, right in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


def test_slots_that_predict_no_chosen_token_are_never_unembedded():
    """Their hidden states are NaN, as is every logit made of them, so one would show."""
    settings = dataclasses.replace(SETTINGS, score_logits=2 * SETTINGS.vocab)
    hidden_BTD = jnp.full((1, 64, SETTINGS.width), jnp.nan).at[0, 9:17].set(1.0)
    wanted_BT = np.zeros((1, 64), bool)
    wanted_BT[0, 9:17] = True
    wanted_BT = jnp.asarray(wanted_BT)

    def summed(params, hidden_BTD):
        target_BT = jnp.zeros((1, 64), jnp.int32)
        return _chunked_log_probs(
            settings, params["embed_VD"], Positions(hidden_BTD, target_BT, wanted_BT)
        ).sum()

    value, gradient = jax.jit(jax.value_and_grad(summed, argnums=(0, 1)))(PARAMS, hidden_BTD)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_in_bfloat16_are_those_of_float32_up_to_rounding(tied):
    """Products are of bfloat16, sums over chunks of float32."""
    hidden = RNG.standard_normal((B, T, SETTINGS.width)).astype(np.float32)
    head = PARAMS["embed_VD"] if tied else PARAMS["embed_VD"].T

    def gradient(dtype):
        settings = dataclasses.replace(
            SETTINGS, dtype=dtype, tied=tied, score_logits=5 * SETTINGS.vocab
        )
        hidden_BTD = jnp.asarray(hidden, dtype)

        def weighted(head, hidden_BTD):
            everywhere = jnp.ones(TOKENS.shape, bool)
            logp_BT = _chunked_log_probs(
                settings, head, Positions(hidden_BTD, jnp.asarray(TOKENS), everywhere)
            )
            return (WEIGHTS[0] * logp_BT).sum()

        return jax.jit(jax.grad(weighted, argnums=(0, 1)))(head, hidden_BTD)

    for found, wanted in zip(gradient("bfloat16"), gradient("float32"), strict=True):
        error = np.linalg.norm(np.float32(found) - wanted) / np.linalg.norm(wanted)
        assert error < 4 * 2**-8


def test_no_gradient_is_computed_of_a_frozen_head():
    settings = dataclasses.replace(SETTINGS, score_logits=5 * SETTINGS.vocab)

    def products(argnums):
        def summed(head, hidden_BTD):
            everywhere = jnp.ones(TOKENS.shape, bool)
            return _chunked_log_probs(
                settings, head, Positions(hidden_BTD, jnp.asarray(TOKENS), everywhere)
            ).sum()

        hidden_BTD = jnp.ones((B, T, SETTINGS.width))
        gradient = jax.jit(jax.grad(summed, argnums=argnums))
        return gradient.lower(PARAMS["embed_VD"], hidden_BTD).as_text().count("dot_general")

    assert (products(1), products((0, 1))) == (2, 3)  # of the logits, and of each argument


def test_products_of_bfloat16_are_summed_in_float32_also_backward():
    settings = dataclasses.replace(SETTINGS, dtype="bfloat16", score_logits=5 * SETTINGS.vocab)

    def summed(head, hidden_BTD):
        everywhere = jnp.ones(TOKENS.shape, bool)
        positions = Positions(hidden_BTD, jnp.asarray(TOKENS), everywhere)
        return _chunked_log_probs(settings, head, positions).sum()

    hidden_BTD = jnp.ones((B, T, SETTINGS.width), jnp.bfloat16)
    gradient = jax.jit(jax.grad(summed, argnums=(0, 1)))
    text = gradient.lower(PARAMS["embed_VD"], hidden_BTD).as_text()
    products = re.findall(r"dot_general.*: \(\S+x(\w+)>, \S+x(\w+)>\) -> \S+x(\w+)>", text)
    assert set(products) == {("bf16", "bf16", "f32")}
    assert len(products) == text.count("dot_general")


def lowered_gradient(*, fsdp, tensor, chunks):
    """The gradient of `log_probs` of 9,600 positions; only the head is large."""
    mesh = make_mesh(jax.devices()[: fsdp * tensor], data=1, fsdp=fsdp, tensor=tensor)
    model = dataclasses.replace(
        SETTINGS,
        heads=4,
        vocab=2048,
        score_logits=9600 // fsdp * 2048 // tensor // chunks,
    )
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = placed(shapes, layout(mesh, model, shapes, name="training"))
    token_BT = jax.ShapeDtypeStruct((16, 600), np.int32, sharding=rows(mesh))
    mask_BT = jax.ShapeDtypeStruct(token_BT.shape, bool, sharding=rows(mesh))

    def summed(params, token_BT, mask_BT):
        with on_mesh(mesh):
            return log_probs(model, params, token_BT, mask_BT).sum()

    return jax.jit(jax.grad(summed)).lower(params, token_BT, mask_BT)


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (4, 2), (1, 4)])
def test_more_chunks_send_nothing_more_between_devices(fsdp, tensor):
    """The head is gathered once, and its gradient is added up over devices once."""

    def sent(chunks):
        text = lowered_gradient(fsdp=fsdp, tensor=tensor, chunks=chunks).compile().as_text()
        return collective_bytes(text, devices=fsdp * tensor, unknown_trips=chunks).total()

    assert 0 < sent(24) < 1.01 * sent(8)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_each_device_has_the_logits_of_its_part_of_the_vocabulary(fsdp):
    """Left to itself, XLA for GPUs gathers their gradients and computes all of the head's."""
    text = lowered_gradient(fsdp=fsdp, tensor=4, chunks=8).as_text()
    logits = re.findall(r"sdy.sharding_constraint %\d+ <@\w+, (.*)> : tensor<\d+x2048xf32>", text)
    assert '[{}, {"tensor"}]' in logits
