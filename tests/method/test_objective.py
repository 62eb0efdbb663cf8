"""The policy loss against Eqs. 8 and 11 token by token, and its reduction to GRPO."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.method import objective
from rapo_jax.method.sums import AGGREGATIONS, add_metric_sums, metric_means
from tests.method.batches import PAPER, loss_and_gradient, policy_loss, random_batch

kl_penalty_sums = jax.jit(objective.kl_penalty_sums, static_argnames="aggregation")


@partial(jax.jit, static_argnames="aggregation")
def sums_and_gradient(logp_BT, *others, **hyper):
    """(loss_sum, weight, metric_sums, gradient) of `policy_loss_sums` by the log-probs."""

    def loss_sum(logp_BT):
        total, *rest = objective.policy_loss_sums(logp_BT, *others, **hyper)
        return total, rest

    (total, rest), gradient_BT = jax.value_and_grad(loss_sum, has_aux=True)(logp_BT)
    return total, *rest, gradient_BT


def naive_aggregate(value_BT, mask_BT, aggregation):
    rows = [sum(v for v, on in zip(vs, ms, strict=True) if on)
            for vs, ms in zip(value_BT, mask_BT, strict=True)]  # fmt: skip
    counts = [sum(map(bool, ms)) for ms in mask_BT]
    if aggregation == "token_mean":
        return sum(rows) / sum(counts)
    if aggregation == "sequence_sum":
        return sum(rows) / len(rows)
    return sum(r / max(c, 1) for r, c in zip(rows, counts, strict=True)) / len(rows)


def naive_loss(
    logp_BT, old_BT, mask_BT, advantage_B, share_B, *, m, clip_low, clip_high, aggregation
):
    """Eqs. 8 and 11, token by token."""
    loss_BT = np.zeros(logp_BT.shape)
    for b in range(logp_BT.shape[0]):
        for t in range(logp_BT.shape[1]):
            shaped = (1 + m * share_B[b]) * math.exp(logp_BT[b, t] - old_BT[b, t])
            clipped = min(max(shaped, 1 - clip_low), 1 + clip_high)
            loss_BT[b, t] = -min(shaped * advantage_B[b], clipped * advantage_B[b])
    return naive_aggregate(loss_BT, mask_BT, aggregation)


def grpo_loss(logp_BT, old_BT, mask_BT, advantage_B, *, clip, aggregation):
    """GRPO as its paper writes it: no shaping anywhere."""
    ratio_BT = jnp.exp(logp_BT - old_BT)
    A_B1 = advantage_B[:, None]
    token_BT = jnp.minimum(ratio_BT * A_B1, jnp.clip(ratio_BT, 1 - clip, 1 + clip) * A_B1)
    token_BT = jnp.where(mask_BT, -token_BT, 0)
    if aggregation == "token_mean":
        return jnp.sum(token_BT) / jnp.sum(mask_BT)
    row_B = jnp.sum(token_BT, axis=1)
    if aggregation == "sequence_mean":
        row_B = row_B / jnp.maximum(jnp.sum(mask_BT, axis=1), 1)
    return jnp.sum(row_B) / row_B.shape[0]


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_is_the_clipped_surrogate_of_the_shaped_ratio(aggregation, dtype):
    hyper = {"m": 0.5, "clip_low": 0.2, "clip_high": 0.28, "aggregation": aggregation}
    with jax.enable_x64(True):
        for seed in range(4):
            batch = random_batch(seed)
            logp_BT, old_BT, mask_BT, advantage_B, share_B = batch
            floats = [jnp.asarray(x, dtype) for x in (logp_BT, old_BT, advantage_B, share_B)]
            loss, metrics = policy_loss(floats[0], floats[1], mask_BT, *floats[2:], **hyper)
            assert loss.dtype == dtype
            assert {v.dtype for v in metrics.values()} == {jnp.dtype(dtype)}
            tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
            np.testing.assert_allclose(
                loss, naive_loss(*batch, **hyper), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_rapo_with_no_retrieval_or_no_shaping_is_grpo_bit_for_bit(aggregation):
    # Operation by operation: compiled, two different programs may sum in different orders.
    logp_BT, old_BT, mask_BT, advantage_B, share_B = map(jnp.asarray, random_batch(7))

    def grpo(logp_BT):
        return grpo_loss(logp_BT, old_BT, mask_BT, advantage_B, clip=0.28, aggregation=aggregation)

    def rapo(logp_BT, m, share_B):
        hyper = PAPER | {"m": m, "aggregation": aggregation}
        return objective.policy_loss(logp_BT, old_BT, mask_BT, advantage_B, share_B, **hyper)[0]

    expected_loss, expected_gradient_BT = jax.value_and_grad(grpo)(logp_BT)
    assert np.any(np.asarray(expected_gradient_BT) != 0)
    for m, F_B in ((0.0, share_B), (0.05, jnp.zeros_like(share_B))):
        loss, gradient_BT = jax.value_and_grad(rapo)(logp_BT, m, F_B)
        assert float(loss) == float(expected_loss)
        np.testing.assert_array_equal(gradient_BT, expected_gradient_BT)


def test_the_compiled_loss_knows_nothing_of_the_share_when_m_is_zero_nor_of_m_without_retrieval():
    logp_BT, old_BT, mask_BT, advantage_B, share_B = random_batch(7)
    rest = (logp_BT, old_BT, mask_BT, advantage_B)
    (plain, _), plain_gradient_BT = loss_and_gradient(*rest, 0 * share_B, **PAPER | {"m": 0.0})
    for m, F_B in ((0.0, share_B), (0.05, 0 * share_B)):
        (loss, _), gradient_BT = loss_and_gradient(*rest, F_B, **PAPER | {"m": m})
        assert float(loss) == float(plain)
        np.testing.assert_array_equal(gradient_BT, plain_gradient_BT)


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_micro_batches_add_up_to_the_whole_batch_however_it_is_split(aggregation, seed, cut):
    batch = random_batch(seed)
    hyper = PAPER | {"aggregation": aggregation}

    def sums(rows):
        """Of these rows, filled up to 6 with rubbish that is marked as not real."""
        fill = np.zeros(6 - len(rows), int)
        arrays = [x[np.r_[rows, fill].astype(int)] for x in batch]
        for x in arrays:
            x[len(rows) :] = np.nan
        return sums_and_gradient(*arrays, np.arange(6) < len(rows), **hyper)

    whole, first, second = sums(np.arange(6)), sums(np.arange(cut)), sums(np.arange(cut, 6))
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(first[0] + second[0], whole[0], **close)
    assert float(first[1] + second[1]) == float(whole[1])
    joined = add_metric_sums(first[2], second[2])
    for name, value in whole[2].items():
        np.testing.assert_allclose(joined[name], value, **close)
    gradient_BT = np.concatenate([first[3][:cut], second[3][: 6 - cut]])
    np.testing.assert_allclose(gradient_BT, whole[3], **close)

    loss, metrics = policy_loss(*batch, **hyper)
    np.testing.assert_allclose(whole[0] / whole[1], loss, **close)
    for name, value in metric_means(joined).items():
        np.testing.assert_allclose(value, metrics[name], **close)


def test_the_metrics_are_means_over_policy_tokens():
    logp_BT, old_BT, mask_BT, advantage_B, share_B = random_batch(3)
    _, metrics = policy_loss(*random_batch(3), **PAPER)
    gap = np.abs(logp_BT - old_BT)[mask_BT]
    ratio_BT = np.exp(logp_BT - old_BT)
    shaped_BT = (1 + 0.05 * share_B)[:, None] * ratio_BT
    expected = {
        "tokens": mask_BT.sum(),
        "ratio": ratio_BT[mask_BT].mean(),
        "shaped_ratio": shaped_BT[mask_BT].mean(),
        "logp_gap": gap.mean(),
        "logp_gap_max": gap.max(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    assert set(metrics) == set(expected) | {"clipped"}


def test_the_share_of_clipped_tokens_is_of_policy_tokens_alone():
    """F = 1 and m = 1 shape the ratio 1 to 2, at every token of the row."""
    ones_B, zeros_BT = jnp.ones(1), jnp.zeros((1, 2))
    given = (zeros_BT, zeros_BT, jnp.array([[True, False]]), ones_B, ones_B)
    how = {"m": 1.0, "clip_low": 0.2, "clip_high": 0.2, "aggregation": "sequence_mean"}
    _, metrics = policy_loss(*given, **how)
    assert float(metrics["clipped"]) == 1.0


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kl_penalty_is_the_k3_estimate(aggregation, dtype):
    with jax.enable_x64(True):
        logp_BT, ref_BT, mask_BT, _, _ = random_batch(6)
        d_BT = ref_BT - logp_BT
        expected = naive_aggregate(np.exp(d_BT) - d_BT - 1, mask_BT, aggregation)
        rows = logp_BT.shape[0]
        kl_sum, weight = kl_penalty_sums(
            jnp.asarray(logp_BT, dtype),
            jnp.asarray(ref_BT, dtype),
            mask_BT,
            jnp.ones(rows, bool),
            aggregation=aggregation,
        )
        assert kl_sum.dtype == dtype
        tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(kl_sum / weight, expected, rtol=tolerance)


def test_the_kl_penalty_is_least_and_flat_at_the_reference_and_blind_to_other_tokens():
    logp_BT, _, mask_BT, _, _ = map(jnp.asarray, random_batch(8))
    ref_BT = jnp.where(mask_BT, logp_BT, jnp.nan)

    def penalty(logp_BT):
        rows_B = jnp.ones(logp_BT.shape[0], bool)
        return kl_penalty_sums(logp_BT, ref_BT, mask_BT, rows_B, aggregation="token_mean")[0]

    value, gradient_BT = jax.value_and_grad(penalty)(logp_BT)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient_BT, jnp.zeros_like(logp_BT))
    assert float(penalty(logp_BT + 0.1)) > 0
    assert float(penalty(logp_BT - 0.1)) > 0


def test_the_kl_penalty_of_a_token_that_the_policy_has_all_but_ruled_out_is_finite():
    """exp(ref - logp) alone would be infinite in float32 from a difference of 89 nats on."""
    logp_BT, ref_BT = jnp.full((1, 1), -200.0), jnp.zeros((1, 1))
    one_BT, one_B = jnp.ones((1, 1), bool), jnp.ones(1, bool)
    penalty, _ = kl_penalty_sums(logp_BT, ref_BT, one_BT, one_B, aggregation="token_mean")
    assert float(penalty) == pytest.approx(math.exp(20) - 21, rel=1e-6)


def test_an_unknown_aggregation_is_refused_with_the_known_ones():
    batch = random_batch(0)
    with pytest.raises(ValueError, match="aggregation='mean'.*'sequence_mean', 'token_mean'"):
        policy_loss(*batch, **PAPER | {"aggregation": "mean"})
