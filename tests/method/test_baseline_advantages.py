"""The advantages of the baselines: by hand, and their reduction to GRPO's."""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.method.advantages import (
    entropy_advantage,
    gigpo_advantage,
    group_advantage,
    tree_advantage,
)
from rapo_jax.method.rewards import overlong_penalty

FLOOR = 1e-6
GRPO = {"ddof": 1, "std_floor": FLOOR}


def rewards(seed, questions=3, group_size=6):
    return np.random.default_rng(seed).choice([-1.0, 0.0, 0.4, 1.0], (questions, group_size))


def standardised(value, among, *, ddof=1):
    deviation = statistics.stdev(among) if ddof else statistics.pstdev(among)
    return (value - statistics.mean(among)) / (deviation + FLOOR)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_leaf_is_compared_with_its_question_and_with_its_tree(dtype, ddof):
    with jax.enable_x64(True):
        reward_QG = rewards(0)
        tree_QG = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [2, 0, 0, 0, 0, 1]])
        found_QG = tree_advantage(
            jnp.asarray(reward_QG, dtype), tree_QG, ddof=ddof, std_floor=FLOOR
        )
        assert found_QG.dtype == dtype
    for q, group in enumerate(reward_QG):
        for g, reward in enumerate(group):
            tree = [r for r, t in zip(group, tree_QG[q], strict=True) if t == tree_QG[q, g]]
            intra = standardised(reward, tree, ddof=ddof) if len(tree) > 1 else 0
            expected = standardised(reward, group.tolist(), ddof=ddof) + intra
            assert float(found_QG[q, g]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_trees_of_one_leaf_are_grpo_bit_for_bit_and_equal_leaves_add_exactly_nothing():
    reward_QG = jnp.asarray(rewards(1), jnp.float32)
    grpo_QG = group_advantage(reward_QG, **GRPO)
    alone_QG = np.tile(np.arange(6), (3, 1))
    np.testing.assert_array_equal(tree_advantage(reward_QG, alone_QG, **GRPO), grpo_QG)
    equal_QG = jnp.repeat(jnp.asarray([[0.1, 0.7]] * 3, jnp.float32), 3, axis=1)
    tree_QG = np.repeat(np.arange(2), 3)[None].repeat(3, 0)
    np.testing.assert_array_equal(
        tree_advantage(equal_QG, tree_QG, **GRPO), group_advantage(equal_QG, **GRPO)
    )


def steps(seed, questions=2, group_size=4, num_steps=3):
    """Returns and anchors; some states occur once, some steps do not exist."""
    rng = np.random.default_rng(seed)
    shape = (questions * group_size, num_steps)
    return rng.normal(size=shape), rng.integers(-1, 4, shape)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_is_compared_with_those_from_the_same_state_of_its_question(normalise, dtype):
    with jax.enable_x64(True):
        reward_QG, (return_BS, anchor_BS) = rewards(2, 2, 4), steps(2)
        found_BS = gigpo_advantage(
            *(jnp.asarray(x, dtype) for x in (reward_QG, return_BS)),
            anchor_BS,
            omega=0.5,
            normalise=normalise,
        )
        assert found_BS.dtype == dtype

    def compared(value, among):
        among = list(among)
        if normalise and len(among) > 1:
            return standardised(value, among)
        return value - statistics.mean(among)

    for b in range(8):
        q, g = divmod(b, 4)
        episode = compared(reward_QG[q, g], reward_QG[q].tolist())
        for s in range(3):
            anchor = anchor_BS[b, s]
            same = [
                return_BS[c, t]
                for c in range(4 * q, 4 * q + 4)
                for t in range(3)
                if anchor_BS[c, t] == anchor >= 0
            ]
            step = compared(return_BS[b, s], same) if len(same) > 1 else 0
            assert float(found_BS[b, s]) == pytest.approx(episode + 0.5 * step, rel=1e-4, abs=1e-5)


def test_without_a_step_term_or_a_repeated_state_gigpo_is_grpo_bit_for_bit():
    reward_QG = jnp.asarray(rewards(3, 2, 4), jnp.float32)
    grpo_B = group_advantage(reward_QG, **GRPO).reshape(-1)
    return_BS, anchor_BS = steps(3)
    once_BS = np.arange(anchor_BS.size).reshape(anchor_BS.shape)
    for anchors, omega in ((anchor_BS, 0.0), (once_BS, 1.0)):
        found_BS = gigpo_advantage(
            reward_QG, jnp.asarray(return_BS, jnp.float32), anchors, omega=omega, normalise=True
        )
        for step_B in found_BS.T:
            np.testing.assert_array_equal(step_B, grpo_B)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uncertain_tokens_weigh_more_by_their_standardised_entropy(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        entropy_BT, mask_BT = rng.exponential(size=(4, 7)), rng.random((4, 7)) < 0.6
        advantage_B = rng.normal(size=4)
        entropy_BT[~mask_BT] = np.nan
        found_BT = entropy_advantage(
            *(jnp.asarray(x, dtype) for x in (advantage_B, entropy_BT)), mask_BT, weight=0.2
        )
        assert found_BT.dtype == dtype
    valid = entropy_BT[mask_BT].tolist()
    mean, std = statistics.mean(valid), statistics.stdev(valid)
    for b in range(4):
        for t in range(7):
            z = (entropy_BT[b, t] - mean) / std if mask_BT[b, t] else 0
            assert float(found_BT[b, t]) == pytest.approx(advantage_B[b] * (1 + 0.2 * z), rel=1e-4)


def test_without_weight_or_with_equal_entropies_aepos_advantage_is_its_rows_bit_for_bit():
    advantage_B = group_advantage(jnp.asarray(rewards(6), jnp.float32), **GRPO).reshape(-1)
    mask_BT = np.random.default_rng(6).random((18, 5)) < 0.5
    varied_BT = np.random.default_rng(7).exponential(size=(18, 5)).astype(np.float32)
    equal_BT = np.full((18, 5), 0.1, np.float32)
    for entropy_BT, weight in ((varied_BT, 0.0), (equal_BT, 0.2)):
        found_BT = entropy_advantage(advantage_B, entropy_BT, mask_BT, weight=weight)
        np.testing.assert_array_equal(found_BT, np.repeat(advantage_B[:, None], 5, axis=1))


def test_no_gradient_flows_through_the_entropies():
    entropy_BT = jnp.asarray([[0.1, 0.5, 0.9]])
    gradient_BT = jax.grad(
        lambda x: entropy_advantage(jnp.ones(1), x, jnp.ones((1, 3)), weight=0.2)[0, 0]
    )(entropy_BT)
    np.testing.assert_array_equal(gradient_BT, 0)


def test_a_long_response_is_penalised_linearly_within_the_last_tokens():
    length_B = np.array([0, 80, 81, 90, 100, 150])
    found_B = overlong_penalty(length_B, max_tokens=100, buffer_tokens=20)
    np.testing.assert_allclose(found_B, [0, 0, -0.05, -0.5, -1, -1], rtol=1e-6)
    for wrong in (0, 101):
        with pytest.raises(ValueError, match=f"buffer_tokens={wrong}: must lie in 1 ... max_to"):
            overlong_penalty(length_B, max_tokens=100, buffer_tokens=wrong)
