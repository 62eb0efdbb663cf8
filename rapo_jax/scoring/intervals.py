"""95 % confidence intervals of a share of right answers and of a mean score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
AT_A_TIME = 64
"""Resamples held in memory at a time."""

Interval = tuple[float, float]


def wilson(right: int, of: int) -> Interval:
    """Wilson's score interval for the share of right answers, `right` of `of` independent ones.

    Raises:
        ValueError: unless 0 <= right <= of and of >= 1.
    """
    from scipy.stats import binomtest

    if not 0 <= right <= of or of < 1:
        raise ValueError(f"right={right}: must be 0 to of={of}, of at least 1")
    interval = binomtest(right, of).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(values: Sequence[float], *, seed: int) -> Interval | None:
    """Percentile interval of the mean over questions, resampled with replacement.

    The same seed gives the same interval. None for fewer than two different values.
    """
    from scipy import stats

    if len(set(values)) < 2:
        return None
    interval = stats.bootstrap(
        (np.asarray(values, float),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=AT_A_TIME,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
