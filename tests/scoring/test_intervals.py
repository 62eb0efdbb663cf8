"""Confidence intervals: Wilson's against numbers by hand, the bootstrap against a known spread."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rapo_jax.scoring.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # z = 1.96, z^2 = 3.8416; centre (8 + 1.9208) / 13.8416 = 0.7167, half width
        # 1.96 * sqrt(8 * 2 / 10 + 0.9604) / 13.8416 = 0.2266
        (8, 10, 0.4901, 0.9433),
        (0, 10, 0.0, 0.2775),  # 3.8416 / 13.8416
        (10, 10, 0.7225, 1.0),
        # centre (45 + 1.9208) / 103.8416 = 0.4518, half 1.96 * sqrt(24.75 + 0.9604) / 103.8416
        (45, 100, 0.3561, 0.5476),
    ],
)
def test_wilsons_interval_is_the_one_by_hand(right, of, low, high):
    assert wilson(right, of) == pytest.approx((low, high), abs=2e-4)


def test_wilsons_interval_stays_within_zero_and_one_and_refuses_nonsense():
    assert all(0 <= bound <= 1 for n in (1, 3) for k in range(n + 1) for bound in wilson(k, n))
    for right, of in ((2, 1), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="right="):
            wilson(right, of)


def test_the_bootstrap_is_about_four_standard_errors_wide_and_the_same_every_time():
    values = np.random.default_rng(0).uniform(size=400).tolist()
    low, high = bootstrap(values, seed=0)
    error = np.std(values) / math.sqrt(len(values))
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert bootstrap(values, seed=0) == (low, high)


@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 9])
def test_values_without_any_spread_have_no_bootstrap_interval(values):
    assert bootstrap(values, seed=0) is None
