"""Sampling: the right frequencies, and log-prob and entropy of the untempered softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rapo_jax.model.sampling import log_softmax_entropy, sample

LOGITS = np.array([1.0, -1.0, 0.3, 2.0, -0.5], np.float32)
DRAWS = 4000


@jax.jit
def draw(logits_BV, seed_B, temperature):
    return sample(logits_BV, jax.vmap(jax.random.key)(seed_B), temperature=temperature)


def softmax(x):
    shifted = np.exp(x.astype(np.float64) - x.max())
    return shifted / shifted.sum()


def draws(*, temperature):
    found = draw(np.tile(LOGITS, (DRAWS, 1)), np.arange(DRAWS), temperature)
    return jax.tree.map(np.asarray, found)


def random_logits(rows):
    return np.random.default_rng(0).standard_normal((rows, 9)).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_are_those_of_the_tempered_softmax(temperature):
    counts_V = np.bincount(draws(temperature=temperature).token_B, minlength=len(LOGITS))
    wanted_V = DRAWS * softmax(LOGITS / temperature)
    assert stats.chisquare(counts_V, wanted_V).pvalue > 0.01


def test_temperature_zero_takes_the_most_likely_token():
    logits_BV = random_logits(16)
    found = draw(logits_BV, np.arange(16), 0.0)
    np.testing.assert_array_equal(found.token_B, logits_BV.argmax(axis=1))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_log_prob_and_entropy_are_those_of_the_untempered_softmax(temperature):
    found = draws(temperature=temperature)
    share_V = softmax(LOGITS)
    np.testing.assert_allclose(found.logp_B, np.log(share_V)[found.token_B], atol=1e-6)
    np.testing.assert_allclose(found.entropy_B, -(share_V * np.log(share_V)).sum(), atol=1e-6)


def test_a_rows_token_depends_on_its_logits_and_its_key_alone():
    logits_BV, seed_B = random_logits(16), np.arange(16)
    together = draw(logits_BV, seed_B, 1.0)
    backwards = draw(logits_BV[::-1], seed_B[::-1], 1.0)
    kept_B1 = np.arange(16)[:, None] == 5
    others = draw(np.where(kept_B1, logits_BV, -logits_BV), np.where(kept_B1[:, 0], 5, 77), 1.0)
    for whole, turned, other in zip(together, backwards, others, strict=True):
        np.testing.assert_array_equal(whole, np.asarray(turned)[::-1])
        assert whole[5] == other[5]


def test_an_impossible_token_leaves_the_entropy_finite():
    logp_V, entropy = jax.jit(log_softmax_entropy)(np.float32([0.0, 0.0, -1e9]))
    np.testing.assert_allclose(entropy, np.log(2), atol=1e-6)
    np.testing.assert_allclose(np.asarray(logp_V)[:2], -np.log(2), atol=1e-6)


def test_half_precision_logits_are_read_in_float32():
    logp_V, entropy = jax.jit(log_softmax_entropy)(LOGITS.astype(jnp.bfloat16))
    assert logp_V.dtype == entropy.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(logp_V).sum(), 1.0, atol=1e-6)


def test_the_entropy_of_a_peaked_distribution_is_not_negative():
    _, entropy_B = jax.jit(log_softmax_entropy)(200 * np.eye(4, dtype=np.float32))
    assert (np.asarray(entropy_B) >= 0).all()
