"""The gradient of the policy loss: where it is zero, how large, and that it is always finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.method.objective import LOG_RATIO_LIMIT, share_silenced_above
from rapo_jax.method.sums import AGGREGATIONS
from tests.method.batches import PAPER, loss_and_gradient, policy_loss, random_batch


@given(seed=st.integers(0, 2**32 - 1), poison=st.sampled_from([math.nan, math.inf, -math.inf, 5.0]))
@settings(max_examples=15, deadline=None)
def test_the_gradient_is_exactly_zero_at_every_other_token_whatever_stands_there(seed, poison):
    logp_BT, old_BT, mask_BT, advantage_B, share_B = random_batch(seed)
    rest = (mask_BT, advantage_B, share_B)
    (clean, _), clean_gradient_BT = loss_and_gradient(logp_BT, old_BT, *rest, **PAPER)
    (poisoned, _), gradient_BT = loss_and_gradient(
        np.where(mask_BT, logp_BT, poison), np.where(mask_BT, old_BT, poison), *rest, **PAPER
    )
    gradient_BT = np.asarray(gradient_BT)
    assert np.all(gradient_BT[~mask_BT] == 0)
    assert np.any(gradient_BT[mask_BT] != 0)
    assert float(poisoned) == float(clean)
    np.testing.assert_array_equal(gradient_BT, clean_gradient_BT)


def test_at_the_sampling_policy_the_gradient_is_the_shaped_advantage_spread_over_the_tokens():
    logp_BT, mask_BT = np.full((1, 4), -0.5), np.array([[True, True, False, True]])
    _, gradient_BT = loss_and_gradient(
        logp_BT, logp_BT, mask_BT, np.array([2.0]), np.array([0.4]), **PAPER
    )
    expected = -(1 + 0.05 * 0.4) * 2.0 / 3
    np.testing.assert_allclose(gradient_BT, [[expected, expected, 0.0, expected]], rtol=1e-6)


def test_the_clip_silences_tokens_that_already_moved_far_enough_and_counts_them():
    # Ratios 2, 2, 1/2, 1/2 with advantages +, -, +, -: the first and the last are silenced.
    logp_BT = np.log([[2.0], [2.0], [0.5], [0.5]])
    advantage_B = np.array([1.0, -1.0, 1.0, -1.0])
    (_, metrics), gradient_BT = loss_and_gradient(
        logp_BT, np.zeros((4, 1)), np.ones((4, 1), bool), advantage_B, np.zeros(4), **PAPER
    )
    np.testing.assert_array_equal(gradient_BT[:, 0] != 0, [False, True, True, False])
    assert float(metrics["clipped"]) == 0.5
    assert float(metrics["tokens"]) == 4


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_a_batch_without_any_policy_token_has_loss_and_gradient_zero(aggregation):
    logp_BT, old_BT, mask_BT, advantage_B, share_B = random_batch(4)
    (loss, metrics), gradient_BT = loss_and_gradient(
        *(logp_BT, old_BT, np.zeros_like(mask_BT), advantage_B, share_B),
        **PAPER | {"aggregation": aggregation},
    )
    assert float(loss) == 0
    assert not np.any(gradient_BT)
    assert not any(map(float, metrics.values()))


def test_a_ratio_too_large_for_the_dtype_makes_no_nan():
    old_BT, all_BT = np.full((1, 2), -200.0), np.ones((1, 2), bool)
    for advantage in (-1.0, 0.0, 1.0):
        (loss, _), gradient_BT = loss_and_gradient(
            *(np.array([[0.0, -199.0]]), old_BT, all_BT, np.array([advantage]), np.zeros(1)),
            **PAPER,
        )
        assert np.isfinite(loss)
        assert np.all(np.isfinite(gradient_BT))


def test_a_nan_at_a_policy_token_is_not_hidden():
    logp_BT, old_BT, mask_BT, advantage_B, share_B = random_batch(5)
    broken_BT = np.where(mask_BT, np.nan, logp_BT)
    loss, _ = policy_loss(broken_BT, old_BT, mask_BT, advantage_B, share_B, **PAPER)
    assert np.isnan(loss)


def test_above_the_silencing_share_a_fresh_positive_rollout_has_no_gradient():
    m, clip_high = 2.0, 0.28
    limit = share_silenced_above(m, clip_high)
    logp_BT = np.full((1, 3), -1.0)

    def gradient(share):
        rest = (np.ones((1, 3), bool), np.ones(1), np.array([share]))
        return np.asarray(loss_and_gradient(logp_BT, logp_BT, *rest, **PAPER | {"m": m})[1])

    assert not np.any(gradient(limit * 1.01))
    assert np.all(gradient(limit * 0.99) != 0)
    assert share_silenced_above(0.0, 0.28) == math.inf
    assert share_silenced_above(0.05, 0.28) > 1  # the paper's m silences nobody


def test_the_cut_of_the_log_ratio_lies_far_outside_the_clip():
    assert math.exp(-LOG_RATIO_LIMIT) < 1e-8
    assert math.exp(LOG_RATIO_LIMIT) > 1e8
