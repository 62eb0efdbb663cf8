"""The decoder compared with numpy, and decoding with a cache compared with `forward`."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from rapo_jax.model.decoding import empty_cache, extend, prefill, sampling_copy
from rapo_jax.model.transformer import angles, forward, init_params, rotate, unembed
from tests.models import SMALL_MODEL

QWEN2 = dataclasses.replace(SMALL_MODEL, layers=2, head_width=6, score_logits=100)
VARIANTS = {
    "qwen2": QWEN2,
    "qwen3": dataclasses.replace(QWEN2, qkv_bias=False, qk_norm=True, kv_heads=1),
    "llama3": dataclasses.replace(QWEN2, qkv_bias=False, tied=False, kv_heads=4),
    "llama31": dataclasses.replace(
        QWEN2, qkv_bias=False, tied=False, head_width=8, rope_type="llama3"
    ),
}
B, T = 3, 11


def shapes(settings):
    return jax.eval_shape(lambda: init_params(settings, jax.random.key(0)))


def shaken(settings):
    """Random parameters, biases and norm scales too: fresh ones would hide their use."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = settings.init_scale * rng.standard_normal(leaf.shape)
        return np.float32(noise + ("scale" in jax.tree_util.keystr(path)))

    return jax.tree_util.tree_map_with_path(draw, shapes(settings))


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    """(settings, parameters, tokens, hidden states of the whole rows)"""
    settings = VARIANTS[request.param]
    params = shaken(settings)
    token_BT = np.random.default_rng(1).integers(0, settings.vocab, (B, T), np.int32)
    return settings, params, token_BT, states(settings, params, token_BT)


def states(settings, params, token_BT):
    return np.asarray(jax.jit(partial(forward, settings))(params, token_BT))


def numpy_logits(s, params, token_T):
    """Logits of one row in float64, written out position by position and head by head."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + s.norm_eps) * scale

    def turn(x, position):
        half = s.head_width // 2
        pairs = x[:half] + 1j * x[half:]
        frequency = s.rope_theta ** (-np.arange(half) / half)
        if s.rope_type == "llama3":
            frequency = np.array([slowed(f) for f in frequency])
        pairs = pairs * np.exp(1j * position * frequency)
        return np.concatenate([pairs.real, pairs.imag])

    def slowed(frequency):
        wave = 2 * np.pi / frequency
        if wave < s.rope_positions / s.rope_high_freq:
            return frequency
        if wave > s.rope_positions / s.rope_low_freq:
            return frequency / s.rope_factor
        blend = (s.rope_positions / wave - s.rope_low_freq) / (s.rope_high_freq - s.rope_low_freq)
        return (1 - blend) * frequency / s.rope_factor + blend * frequency

    x = p["embed_VD"][token_T]
    for layer in range(s.layers):
        w = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["blocks"])
        normed = norm(x, w["attention_norm"]["scale"])

        def heads(name, count, normed=normed, w=w):
            y = normed @ w[name]["kernel"] + (w[name]["bias"] if s.qkv_bias else 0)
            y = y.reshape(len(token_T), count, s.head_width)
            if s.qk_norm and name != "value":
                y = norm(y, w[f"{name}_norm"]["scale"])
            if name == "value":
                return y
            return np.array([[turn(head, t) for head in y[t]] for t in range(len(y))])

        query, key, value = (
            heads(name, count)
            for name, count in (("query", s.heads), ("key", s.kv_heads), ("value", s.kv_heads))
        )
        mixed = np.zeros_like(query)
        for t in range(len(token_T)):
            for n in range(s.heads):
                k = n // (s.heads // s.kv_heads)
                score = key[: t + 1, k] @ query[t, n] / np.sqrt(s.head_width)
                share = np.exp(score - score.max())
                mixed[t, n] = share / share.sum() @ value[: t + 1, k]
        x = x + mixed.reshape(len(token_T), -1) @ w["output"]["kernel"]
        normed = norm(x, w["ffn_norm"]["scale"])
        gate = normed @ w["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ w["up"]["kernel"])) @ w["down"]["kernel"]
    head = p["embed_VD"].T if s.tied else p["head_DV"]
    return norm(x, p["norm"]["scale"]) @ head


def test_the_decoder_is_the_one_written_out_in_numpy(model):
    settings, params, token_BT, hidden_BTD = model
    logits_BTV = jax.jit(partial(unembed, settings))(params, hidden_BTD)
    assert logits_BTV.dtype == np.float32
    for row, logits_TV in zip(token_BT, np.asarray(logits_BTV), strict=True):
        np.testing.assert_allclose(logits_TV, numpy_logits(settings, params, row), atol=2e-4)


def test_reading_with_the_cache_in_pieces_of_different_length_gives_the_same_states(model):
    settings, params, token_BT, hidden_BTD = model
    copy = sampling_copy(settings, params)
    read = jax.jit(partial(extend, settings, first=0, length_B=np.full(B, T + 4)))
    cache = jax.tree.map(np.asarray, empty_cache(settings, rows=B, positions=T + 4))
    length_B = np.zeros(B, np.int32)
    pieces = [[] for _ in range(B)]
    for taken_B in ([2, 4, 3], [3, 3, 1], [4, 0, 4], [2, 4, 3]):  # rows apart, then all full
        at_BX = np.minimum(length_B[:, None] + np.arange(4), T - 1)
        piece_BX = np.take_along_axis(token_BT, at_BX, axis=1)
        valid_BX = np.arange(4) < np.array(taken_B)[:, None]
        found_BXD, cache = read(copy, cache, np.where(valid_BX, piece_BX, 7), length_B)
        for row, found_XD, taken in zip(pieces, np.asarray(found_BXD), taken_B, strict=True):
            row.append(found_XD[:taken])
        length_B = length_B + np.int32(taken_B)
    assert length_B.tolist() == [T] * B
    np.testing.assert_allclose([np.concatenate(row) for row in pieces], hidden_BTD, atol=2e-5)


def test_a_prompt_read_at_once_can_be_extended_row_by_row(model):
    settings, params, token_BT, hidden_BTD = model
    copy, X = sampling_copy(settings, params), 5
    hidden_BXD, prompts = jax.jit(partial(prefill, settings))(copy, token_BT[:, :X])
    np.testing.assert_allclose(hidden_BXD, hidden_BTD[:, :X], atol=2e-5)

    def copied(old, read_once):  # into the middle of a larger cache
        return jax.lax.dynamic_update_slice(old, read_once, (1, 0, 0, 0))

    cache = jax.tree.map(copied, empty_cache(settings, rows=B + 2, positions=T), prompts)
    read = jax.jit(partial(extend, settings))
    start_1 = np.full(1, X, np.int32)
    for row in (2, 0, 1):
        how = {"first": row + 1, "length_B": np.full(1, T)}
        before = cache
        found_1XD, cache = read(copy, cache, token_BT[row : row + 1, X:], start_1, **how)
        assert found_1XD.shape[1] == T - X
        np.testing.assert_allclose(found_1XD[0], hidden_BTD[row, X:], atol=2e-5)
        others = np.arange(B + 2) != row + 1
        for left, right in zip(jax.tree.leaves(cache), jax.tree.leaves(before), strict=True):
            np.testing.assert_array_equal(left[others], right[others])


def test_a_token_changes_no_state_before_it_and_every_state_from_it_on(model):
    settings, params, token_BT, hidden_BTD = model
    changed_BT = token_BT.copy()
    changed_BT[:, 6] = (changed_BT[:, 6] + 1) % settings.vocab
    other_BTD = states(settings, params, changed_BT)
    np.testing.assert_array_equal(other_BTD[:, :6], hidden_BTD[:, :6])
    assert (np.abs(other_BTD[:, 6:] - hidden_BTD[:, 6:]).max(axis=2) > 1e-4).all()


def test_only_an_untied_model_has_a_head_and_only_qwen2_has_biases():
    names = {
        name: {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(p)}
        for name, p in ((n, shapes(s)) for n, s in VARIANTS.items())
    }
    untied = {name for name, leaves in names.items() if "['head_DV']" in leaves}
    assert untied == {"llama3", "llama31"}
    assert {n for n, leaves in names.items() if any("bias" in x for x in leaves)} == {"qwen2"}
    assert {n for n, leaves in names.items() if any("query_norm" in x for x in leaves)} == {"qwen3"}


def test_fresh_weights_are_the_draws_of_jax_random_times_their_scale_bit_for_bit():
    settings = VARIANTS["llama3"]
    fresh = jax.jit(init_params, static_argnums=0)(settings, jax.random.key(3))
    keys = jax.random.split(jax.random.key(3), 3)
    shape = (settings.vocab, settings.width)
    for name, key, drawn in (("embed_VD", keys[0], shape), ("head_DV", keys[1], shape[::-1])):
        wanted = np.float32(settings.init_scale) * np.asarray(jax.random.normal(key, drawn))
        np.testing.assert_array_equal(fresh[name], wanted)


def test_unrolling_layers_changes_nothing_but_rounding():
    token_BT = np.arange(B * T).reshape(B, T) % QWEN2.vocab
    rolled_BTD, unrolled_BTD = (
        states(dataclasses.replace(QWEN2, layer_unroll=n), shaken(QWEN2), token_BT) for n in (1, 2)
    )
    np.testing.assert_allclose(rolled_BTD, unrolled_BTD, atol=1e-5)


def test_a_bfloat16_model_keeps_float32_parameters_and_logits_near_the_float32_ones():
    half = dataclasses.replace(QWEN2, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {np.dtype(np.float32)}

    def logits(settings):
        def program(params, token_BT):
            return unembed(settings, params, forward(settings, params, token_BT))

        return np.asarray(jax.jit(program)(shaken(QWEN2), np.arange(B * T).reshape(B, T) % 23))

    token_BT = jax.ShapeDtypeStruct((B, T), np.int32)
    assert jax.eval_shape(partial(forward, half), shapes(half), token_BT).dtype == "bfloat16"
    whole_BTV, half_BTV = logits(QWEN2), logits(half)
    assert half_BTV.dtype == np.float32
    assert 0 < np.abs(half_BTV - whole_BTV).max() < 0.2 * whole_BTV.std()


def test_scores_of_rotated_queries_and_keys_depend_only_on_their_distance():
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 1, 1, 1, QWEN2.head_width)).astype(np.float32)

    def turned(x):
        each_BTNH = np.broadcast_to(x, (1, 8, 1, QWEN2.head_width))
        return jax.jit(lambda y: rotate(y, angles(QWEN2, np.arange(8)[None])))(each_BTNH)[0, :, 0]

    score_TT = np.asarray(turned(query)) @ np.asarray(turned(key)).T
    for distance in range(-7, 8):
        same = np.diagonal(score_TT, distance)
        np.testing.assert_allclose(same, same[0], atol=1e-5)
    assert len(np.unique(score_TT.round(4))) == 15


def test_llama3_scaling_keeps_fast_turns_slows_slow_ones_and_blends_between():
    s = dataclasses.replace(VARIANTS["llama31"], head_width=32, rope_positions=64)
    plain = dataclasses.replace(s, rope_type="default")

    def frequencies(settings):
        # at position 1 the angle is the frequency
        cos, sin = angles(settings, np.ones((1, 1), np.int32))
        return np.arctan2(np.asarray(sin), np.asarray(cos)).ravel()

    before_R, after_R = frequencies(plain), frequencies(s)
    turns_R = s.rope_positions * before_R / (2 * np.pi)
    fast_R, slow_R = turns_R > s.rope_high_freq, turns_R < s.rope_low_freq
    assert fast_R.any() and slow_R.any() and (~fast_R & ~slow_R).any()
    np.testing.assert_array_equal(after_R[fast_R], before_R[fast_R])
    np.testing.assert_allclose(after_R[slow_R], before_R[slow_R] / s.rope_factor, rtol=1e-6)
    share_R = (after_R / before_R)[~fast_R & ~slow_R]
    assert ((1 / s.rope_factor < share_R) & (share_R < 1)).all() and (np.diff(share_R) < 0).all()
