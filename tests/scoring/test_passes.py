"""Pass rates: compared with a count of all draws, and at their limits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.scoring.passes import pass_at_k, pass_rates


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample(samples, data):
    right = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    draws = list(combinations([i < right for i in range(samples)], k))
    assert pass_at_k(samples, right, k) == pytest.approx(np.mean([any(draw) for draw in draws]))


def test_many_samples_lose_no_digits():
    samples, right, k = 10_000, 1, 5_000
    assert pass_at_k(samples, right, k) == pytest.approx(k / samples)


@pytest.mark.parametrize(
    ("samples", "right", "k", "message"),
    [(4, 5, 1, "right=5"), (4, -1, 1, "right=-1"), (4, 1, 5, "k=5"), (4, 1, 0, "k=0")],
)
def test_impossible_numbers_are_refused(samples, right, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(samples, right, k)


def test_rates_are_means_over_questions_and_only_a_score_of_one_is_right():
    score_QG = [[1.0, 0.0, 0.5, 0.0], [0.0, 0.9, 0.0, 0.0]]
    assert pass_rates(score_QG, k=2) == {
        "pass@1": pytest.approx(np.mean([1 / 4, 0])),
        "avg@2": pytest.approx(np.mean([[1.0, 0.0], [0.0, 0.9]])),
        "pass@2": pytest.approx(np.mean([1 - (3 * 2) / (4 * 3), 0])),
    }


def test_questions_may_have_more_samples_than_k_but_not_fewer():
    assert pass_rates([[1.0], [0.0, 1.0]], k=1)["pass@1"] == pytest.approx(np.mean([1, 0.5]))
    with pytest.raises(ValueError, match="k=2: question 0 has 1 samples"):
        pass_rates([[1.0], [0.0, 1.0]], k=2)
    with pytest.raises(ValueError, match="no question"):
        pass_rates([], k=1)
