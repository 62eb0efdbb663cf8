"""95 % confidence intervals of what a suite shows: a share of right answers, a mean score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
AT_A_TIME = 64
"""Resamples held in memory at a time."""

Interval = tuple[float, float]


def wilson(right: int, of: int) -> Interval:
    """Wilson's score interval of `right` of `of` independent answers."""
    from scipy.stats import binomtest

    if not 0 <= right <= of or of < 1:
        raise ValueError(f"right={right}: must be 0 to of={of}, of at least 1")
    found = binomtest(right, of).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def bootstrap(values: Sequence[float], *, seed: int) -> Interval | None:
    """Percentile interval of the mean over questions, drawn again with replacement.

    The same seed gives the same interval. None where there is nothing to draw from: fewer than two
    values, or all of them equal.
    """
    from scipy import stats

    if len(set(values)) < 2:
        return None
    found = stats.bootstrap(
        (np.asarray(values, float),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=AT_A_TIME,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
