"""The retrieval reward against Eqs. 5-7 written as loops."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.method import rewards
from rapo_jax.method.rewards import QUALITIES, TIMINGS
from rapo_jax.types import Source

PAD, POL, RET = int(Source.PAD), int(Source.POLICY), int(Source.RETRIEVED)
FLOOR = 1e-6
PAPER = {"quality": "decrease", "timing": "high", "entropy_floor": FLOOR}

retrieval_reward_per_step = jax.jit(
    rewards.retrieval_reward_per_step, static_argnames=("quality", "timing")
)


def retrieval_reward(entropy_BS, source_BS, **settings_):
    """Z_ret of each trajectory, from its step entropies."""
    Z_BS = retrieval_reward_per_step(entropy_BS, source_BS, **settings_)
    return rewards.retrieval_reward(Z_BS, source_BS)


NAIVE_QUALITIES = {
    "decrease": lambda delta: math.tanh(2 * delta),
    "increase": lambda delta: math.tanh(-2 * delta),
    "off": lambda delta: 1.0,
}
NAIVE_TIMINGS = {
    "high": lambda H_before, floor: H_before,
    "low": lambda H_before, floor: 1 / max(H_before, floor),
    "off": lambda H_before, floor: 1.0,
}


def naive_Z(entropy_S, source_S, s, quality, timing, floor):
    """Eqs. 5-7 for the retrieval at step s."""
    before = [i for i in range(s) if source_S[i] == POL]
    after = [i for i in range(s + 1, len(source_S)) if source_S[i] == POL]
    if not before or not after:
        return 0.0
    H_before, H_after = entropy_S[before[-1]], entropy_S[after[0]]
    delta = -(H_after - H_before) / max(H_before, floor)
    return NAIVE_QUALITIES[quality](delta) * NAIVE_TIMINGS[timing](H_before, floor)


def naive_reward(entropy_BS, source_BS, quality, timing, floor):
    reward_B = []
    for entropy_S, source_S in zip(entropy_BS, source_BS, strict=True):
        retrievals = [s for s in range(len(source_S)) if source_S[s] == RET]
        Z = [naive_Z(entropy_S, source_S, s, quality, timing, floor) for s in retrievals]
        reward_B.append(sum(Z) / len(Z) if Z else 0.0)
    return np.array(reward_B)


def random_steps(seed, rows=6, num_steps=7):
    rng = np.random.default_rng(seed)
    entropy_BS = rng.uniform(0, 3, (rows, num_steps)) * rng.integers(0, 2, (rows, num_steps))
    return entropy_BS, rng.choice([PAD, POL, RET], (rows, num_steps), p=[0.2, 0.5, 0.3])


@pytest.mark.parametrize("quality", NAIVE_QUALITIES)
@pytest.mark.parametrize("timing", NAIVE_TIMINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_variant_is_the_papers_formula_with_one_term_changed(quality, timing, dtype):
    settings_ = {"quality": quality, "timing": timing, "entropy_floor": 0.01}
    with jax.enable_x64(True):
        for seed in range(5):
            entropy_BS, source_BS = random_steps(seed)
            reward_B = retrieval_reward(jnp.asarray(entropy_BS, dtype), source_BS, **settings_)
            assert reward_B.dtype == dtype
            expected_B = naive_reward(entropy_BS, source_BS, quality, timing, 0.01)
            tolerance = {"float32": 3e-6, "float64": 1e-13}[dtype]
            np.testing.assert_allclose(reward_B, expected_B, rtol=tolerance, atol=tolerance)


def test_the_tables_hold_exactly_the_variants_that_are_tested():
    assert set(QUALITIES) == set(NAIVE_QUALITIES)
    assert set(TIMINGS) == set(NAIVE_TIMINGS)


def test_a_retrieval_that_halves_the_entropy_scores_tanh_of_one_times_the_entropy_before():
    reward_B = retrieval_reward(jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[POL, RET, POL]]), **PAPER)
    np.testing.assert_allclose(reward_B, [2.0 * math.tanh(1.0)], rtol=1e-6)


def test_a_retrieval_with_no_policy_step_after_it_scores_zero_and_counts_in_the_mean():
    judged = jnp.array([[POL, RET, POL, PAD]])
    cut_short = jnp.array([[POL, RET, POL, RET]])
    entropy_BS = jnp.array([[2.0, 0.0, 1.0, 0.0]])
    full_B = retrieval_reward(entropy_BS, judged, **PAPER)
    half_B = retrieval_reward(entropy_BS, cut_short, **PAPER)
    np.testing.assert_allclose(half_B, full_B / 2, rtol=1e-6)


def test_a_trajectory_retrieved_before_the_policys_first_step_scores_zero():
    entropy_BS, source_BS = jnp.array([[0.0, 1.0]]), jnp.array([[RET, POL]])
    for quality in QUALITIES:
        for timing in TIMINGS:
            reward_B = retrieval_reward(
                entropy_BS, source_BS, quality=quality, timing=timing, entropy_floor=FLOOR
            )
            np.testing.assert_array_equal(reward_B, [0.0])


def test_a_trajectory_without_retrieval_scores_zero():
    entropy_BS = jnp.array([[2.0, 0.5, 1.0]])
    np.testing.assert_array_equal(
        retrieval_reward(entropy_BS, jnp.array([[POL, POL, PAD]]), **PAPER), [0.0]
    )


def test_two_retrievals_in_a_row_are_judged_by_the_same_policy_steps():
    Z_BS = retrieval_reward_per_step(
        jnp.array([[1.0, 0.0, 0.0, 0.5]]), jnp.array([[POL, RET, RET, POL]]), **PAPER
    )
    Z = math.tanh(1.0)
    np.testing.assert_allclose(Z_BS, [[0.0, Z, Z, 0.0]], rtol=1e-6)


def test_the_reward_is_the_mean_of_the_rewards_by_step():
    entropy_BS, source_BS = random_steps(11)
    Z_BS = np.asarray(retrieval_reward_per_step(jnp.asarray(entropy_BS), source_BS, **PAPER))
    assert np.all(Z_BS[source_BS != RET] == 0)
    count_B = np.maximum((source_BS == RET).sum(1), 1)
    reward_B = retrieval_reward(jnp.asarray(entropy_BS), source_BS, **PAPER)
    np.testing.assert_allclose(reward_B, Z_BS.sum(1) / count_B, rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_zero_entropies_never_make_a_nan(seed):
    entropy_BS, source_BS = random_steps(seed)
    for quality in QUALITIES:
        for timing in TIMINGS:
            for zero_or_not in (entropy_BS, 0 * entropy_BS):
                reward_B = retrieval_reward(
                    jnp.asarray(zero_or_not, jnp.float32),
                    source_BS,
                    quality=quality,
                    timing=timing,
                    entropy_floor=FLOOR,
                )
                assert np.all(np.isfinite(reward_B))


def test_the_entropy_floor_guards_the_division_but_not_the_factor_of_timing():
    entropy_BS, source_BS = jnp.array([[0.1, 0.0, 0.2]]), jnp.array([[POL, RET, POL]])

    def reward(quality, timing):
        settings_ = {"quality": quality, "timing": timing, "entropy_floor": 0.5}
        return float(retrieval_reward(entropy_BS, source_BS, **settings_)[0])

    assert reward("off", "high") == pytest.approx(0.1)
    assert reward("off", "low") == pytest.approx(1 / 0.5)
    assert reward("decrease", "off") == pytest.approx(math.tanh(2 * (0.1 - 0.2) / 0.5))


def test_an_unknown_variant_is_refused_by_its_key_with_the_known_ones():
    entropy_BS, source_BS = jnp.ones((1, 2)), jnp.full((1, 2), POL)
    with pytest.raises(ValueError, match="quality='rise'.*'decrease', 'increase', 'off'"):
        retrieval_reward(entropy_BS, source_BS, quality="rise", timing="high", entropy_floor=1e-6)
    with pytest.raises(ValueError, match="timing='late'.*'high', 'low', 'off'"):
        retrieval_reward(entropy_BS, source_BS, quality="off", timing="late", entropy_floor=1e-6)
