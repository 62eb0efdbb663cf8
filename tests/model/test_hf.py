"""Loaded weights against transformers and torch on random checkpoints, and back again."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rapo_jax.model.decoding import empty_cache, extend, sampling_copy
from rapo_jax.model.hf import save_weights
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.scoring import score
from rapo_jax.model.transformer import forward, unembed
from tests.model.checkpoints import (
    VARIANTS,
    VOCAB,
    hub_style,
    load,
    load_model,
    logits_of,
    logp_and_entropy,
    make_model,
    save_model,
)

F32, BF16 = 1e-4, 3e-2
"""How far from transformers a logit or a log-prob may be."""


@partial(jax.jit, static_argnums=0)
def answers(settings, params, token_BT):
    """(logits, log-probs, entropies), the last two of every token after the first."""
    logits_BTV = unembed(settings, params, forward(settings, params, token_BT))
    logp_BT, entropy_BT = score(settings, params, token_BT)
    return logits_BTV, logp_BT[:, 1:], entropy_BT[:, 1:]


def tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape, np.int32)


def apart(left, right):
    return float(np.abs(np.asarray(left) - np.asarray(right)).max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("style", ["new config, one file", "hub config, several shards"])
def test_logits_log_probs_and_entropies_are_those_of_transformers(variant, style, tmp_path):
    several = "several" in style
    model = make_model(variant, seed=int(several))
    want_BTV = logits_of(model, token_BT := tokens((2, 48)))
    save_model(model, tmp_path, shard="20KB" if several else "1GB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 if several else True
    if several:
        hub_style(tmp_path)
    logits_BTV, *found = answers(*load(tmp_path), token_BT)
    assert want_BTV.std() > 0.3  # not so flat that everything would agree
    assert apart(logits_BTV, want_BTV) < F32
    for mine, theirs in zip(found, logp_and_entropy(want_BTV, token_BT), strict=True):
        assert apart(mine, theirs) < F32


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_bfloat16_they_stay_near_transformers_in_bfloat16_and_in_float32(variant, tmp_path):
    model = make_model(variant, std=0.05)
    token_BT = tokens((2, 48), seed=1)
    whole_BTV = logits_of(model, token_BT)
    save_model(model, tmp_path, dtype=torch.bfloat16)
    half_BTV = logits_of(load_model(tmp_path), token_BT)
    settings, params = load(tmp_path, "bfloat16")
    assert params["blocks"]["query"]["kernel"].dtype == params["embed_VD"].dtype == jnp.bfloat16
    assert params["norm"]["scale"].dtype == jnp.float32
    logits_BTV, logp_BT, entropy_BT = answers(settings, params, token_BT)
    for theirs_BTV in (half_BTV, whole_BTV):
        assert apart(logits_BTV, theirs_BTV) < BF16
        theirs_BT, _ = logp_and_entropy(theirs_BTV, token_BT)
        assert apart(logp_BT, theirs_BT) < BF16
    assert logp_BT.dtype == entropy_BT.dtype == jnp.float32


@pytest.mark.parametrize("variant", ["llama3", "llama31", "qwen3"])
def test_far_positions_agree_too(variant, tmp_path):
    model = make_model(variant, seed=2)
    want_BTV = logits_of(model, token_BT := tokens((1, 1024)))
    settings, params = load(save_model(model, tmp_path))
    logits_BTV, *_ = answers(settings, params, token_BT)
    assert apart(logits_BTV, want_BTV) < F32
    if variant == "llama31":  # far beyond its original context, where scaling is what counts
        plain = dataclasses.replace(settings, rope_type="default")
        assert apart(answers(plain, params, token_BT)[0], want_BTV) > 100 * F32


def test_decoding_with_a_cache_gives_the_logits_of_transformers(tmp_path):
    model = make_model("llama31", seed=3)
    want_BTV = logits_of(model, token_BT := tokens((2, 40)))
    settings, params = load(save_model(model, tmp_path))
    copy = sampling_copy(settings, params)

    @jax.jit
    def read(cache, token_BX, start_B):
        hidden_BXD, cache = extend(settings, copy, cache, token_BX, start_B, length_B=start_B + 8)
        return unembed(settings, copy, hidden_BXD), cache

    cache = empty_cache(settings, rows=2, positions=48)
    for start in range(0, 40, 8):
        logits_BXV, cache = read(cache, token_BT[:, start : start + 8], np.full(2, start))
        assert apart(logits_BXV, want_BTV[:, start : start + 8]) < F32


@pytest.mark.parametrize("variant", ["qwen2", "qwen3_tied", "llama32_tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [10**9, 6000])
def test_weights_loaded_and_written_again_give_identical_logits(variant, dtype, limit, tmp_path):
    stored = getattr(torch, dtype)
    first, second = tmp_path / "first", tmp_path / "second"
    save_model(make_model(variant), first, dtype=stored)
    settings, params = load(first)
    second.mkdir()
    save_weights(second, settings, params, dtype=dtype, limit=limit)
    (second / "config.json").write_text((first / "config.json").read_text())
    model = load_model(second)
    assert model.dtype == stored
    token_BT = tokens((2, 30))
    np.testing.assert_array_equal(
        logits_of(model, token_BT), logits_of(load_model(first), token_BT)
    )
    sizes = [path.stat().st_size for path in second.glob("*.safetensors")]
    assert (len(sizes) > 1) == (limit == 6000)
    _, again = load(second)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_shards_hold_at_most_their_limit_unless_one_tensor_is_larger(tmp_path):
    settings, params = load(save_model(make_model("qwen2_tied"), tmp_path / "first"))
    (tmp_path / "second").mkdir()
    save_weights(tmp_path / "second", settings, params, dtype="float32", limit=5000)
    index = json.loads((tmp_path / "second" / "model.safetensors.index.json").read_text())
    files: dict[str, list[int]] = {}
    tensors = Tensors(tmp_path / "second")
    for name, file in index["weight_map"].items():
        files.setdefault(file, []).append(4 * int(np.prod(tensors.headers[name].shape)))
    assert (
        set(index["weight_map"]) == set(tensors.headers) and "lm_head.weight" not in tensors.headers
    )
    assert all(len(sizes) == 1 or sum(sizes) <= 5000 for sizes in files.values())
    assert index["metadata"]["total_size"] == sum(map(sum, files.values()))
    assert sorted(files)[0] == f"model-00001-of-{len(files):05}.safetensors"


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    settings, params = load(save_model(make_model("qwen3"), tmp_path))
    params["blocks"]["up"]["kernel"] = params["blocks"]["up"]["kernel"].at[1, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight would hold NaN"):
        save_weights(tmp_path, settings, params, dtype="float32", limit=10**9)
