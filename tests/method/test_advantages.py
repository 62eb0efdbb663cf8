"""Group-relative advantages against Eqs. 9 and 10 group by group."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.method import advantages
from rapo_jax.method.advantages import largest_safe_a

FLOOR = 1e-6

group_advantage = jax.jit(advantages.group_advantage, static_argnames="ddof")
rapo_advantage = jax.jit(advantages.rapo_advantage, static_argnames="ddof")


def naive_group_advantage(reward_QG, ddof, std_floor):
    """Eq. 9, one group after the other."""
    advantage_QG = np.zeros(reward_QG.shape)
    for q, group in enumerate(reward_QG):
        mean = sum(group) / len(group)
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - ddof))
        for g, reward in enumerate(group):
            advantage_QG[q, g] = (reward - mean) / (std + std_floor)
    return advantage_QG


def random_rewards(seed, questions=4, group_size=8):
    rng = np.random.default_rng(seed)
    outcome_QG = rng.choice([-1.0, 0.0, 0.4, 1.0, 1.1], (questions, group_size))
    return outcome_QG, rng.normal(size=(questions, group_size))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("std_floor", [1e-6, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_group_advantage_is_the_reward_less_the_groups_mean_by_its_std(ddof, std_floor, dtype):
    with jax.enable_x64(True):
        outcome_QG, _ = random_rewards(0)
        advantage_QG = group_advantage(
            jnp.asarray(outcome_QG, dtype), ddof=ddof, std_floor=std_floor
        )
        assert advantage_QG.dtype == dtype
        expected_QG = naive_group_advantage(outcome_QG, ddof, std_floor)
        tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
        np.testing.assert_allclose(advantage_QG, expected_QG, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_retrieval_advantage_scales_the_outcomes(ddof, dtype):
    with jax.enable_x64(True):
        outcome_QG, retrieval_QG = random_rewards(1)
        advantage_QG = rapo_advantage(
            jnp.asarray(outcome_QG, dtype),
            jnp.asarray(retrieval_QG, dtype),
            a=0.2,
            ddof=ddof,
            std_floor=FLOOR,
        )
        assert advantage_QG.dtype == dtype
        expected_QG = (1 + 0.2 * naive_group_advantage(retrieval_QG, ddof, FLOOR)) * (
            naive_group_advantage(outcome_QG, ddof, FLOOR)
        )
        tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
        np.testing.assert_allclose(advantage_QG, expected_QG, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("std_floor", [0.0, 1e-6])
def test_a_group_of_equal_rewards_has_advantage_exactly_zero(std_floor):
    # 0.1 summed 12 times and divided by 12 is not 0.1 in binary.
    for reward in (0.1, 2 / 3, 1.1, -1.0):
        for group_size in (2, 3, 12, 16):
            advantage_QG = group_advantage(
                jnp.full((2, group_size), reward), ddof=1, std_floor=std_floor
            )
            np.testing.assert_array_equal(advantage_QG, np.zeros((2, group_size)))


def test_without_retrieval_or_with_a_zero_rapos_advantage_is_grpos_bit_for_bit():
    outcome_QG, retrieval_QG = map(jnp.asarray, random_rewards(2))
    grpo_QG = group_advantage(outcome_QG, ddof=1, std_floor=FLOOR)
    shared = {"ddof": 1, "std_floor": FLOOR}
    no_retrieval_QG = rapo_advantage(outcome_QG, jnp.zeros_like(outcome_QG), a=0.2, **shared)
    no_weight_QG = rapo_advantage(outcome_QG, retrieval_QG, a=0.0, **shared)
    np.testing.assert_array_equal(no_retrieval_QG, grpo_QG)
    np.testing.assert_array_equal(no_weight_QG, grpo_QG)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_order_of_questions_and_of_rollouts_does_not_matter(seed):
    outcome_QG, retrieval_QG = random_rewards(seed)
    rng = np.random.default_rng(seed)
    questions, rollouts = rng.permutation(4), rng.permutation(8)

    def permuted(x_QG):
        return x_QG[questions][:, rollouts]

    def advantage(outcome_QG, retrieval_QG):
        return rapo_advantage(
            jnp.asarray(outcome_QG), jnp.asarray(retrieval_QG), a=0.2, ddof=1, std_floor=FLOOR
        )

    np.testing.assert_allclose(
        advantage(permuted(outcome_QG), permuted(retrieval_QG)),
        permuted(np.asarray(advantage(outcome_QG, retrieval_QG))),
        atol=1e-5,
    )


@given(
    rewards=st.lists(
        st.lists(st.floats(-1, 1.125, width=32), min_size=4, max_size=4), min_size=2, max_size=2
    )
)
@settings(max_examples=25, deadline=None)
def test_no_rewards_make_a_nan(rewards):
    reward_QG = jnp.asarray(rewards, jnp.float32)
    for std_floor in (0.0, FLOOR):
        advantage_QG = rapo_advantage(reward_QG, reward_QG, a=0.2, ddof=1, std_floor=std_floor)
        assert np.all(np.isfinite(advantage_QG))


@pytest.mark.parametrize(("group_size", "ddof"), [(1, 0), (1, 1), (2, 2)])
def test_a_group_too_small_is_refused(group_size, ddof):
    with pytest.raises(ValueError, match=f"rollout.group_size={group_size}.*at least"):
        group_advantage(jnp.zeros((3, group_size)), ddof=ddof, std_floor=FLOOR)


def test_the_papers_group_of_16_may_weigh_retrieval_up_to_four_fifteenths():
    assert largest_safe_a(16, 1) == pytest.approx(4 / 15)


@pytest.mark.parametrize("group_size", [2, 4, 16])
@pytest.mark.parametrize("ddof", [0, 1])
def test_just_above_the_largest_safe_a_one_outlier_flips_its_sign_and_just_below_none(
    group_size, ddof
):
    with jax.enable_x64(True):
        outlier = np.r_[-1.0, np.zeros(group_size - 1)]
        groups = np.random.default_rng(0).normal(size=(300, group_size))
        retrieval_QG = jnp.asarray(np.vstack([outlier, groups]))
        # The scale by itself: with an outcome advantage of 1 everywhere A is 1 + a A_ret.
        A_ret_QG = group_advantage(retrieval_QG, ddof=ddof, std_floor=0.0)
        limit = largest_safe_a(group_size, ddof)
        assert float(jnp.min(1 + 0.999 * limit * A_ret_QG)) > 0
        assert float(1 + 1.001 * limit * A_ret_QG[0, 0]) < 0
