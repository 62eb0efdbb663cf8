"""The objectives of the baselines: by hand, their reduction to GRPO, and their gradients."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.method import objective
from rapo_jax.method.clipping import CLIPPINGS
from rapo_jax.method.sums import AGGREGATIONS, add_metric_sums
from tests.method.batches import policy_loss, random_batch, whole_batch

GRPO = {"m": 0.0, "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"}
loss_of = jax.jit(objective.policy_loss, static_argnames=("aggregation", "clipping", "dual_clip"))
luffy_loss = whole_batch(objective.luffy_loss_sums)
replay_loss = whole_batch(objective.replay_loss_sums)


def gradient_of(loss, logp_BT, *others, **hyper):
    return jax.grad(lambda x: loss(x, *others, **hyper)[0])(jnp.asarray(logp_BT))


def doubles(*arrays):
    return [jnp.asarray(x) if x.dtype == bool else jnp.asarray(x, jnp.float64) for x in arrays]


def wide_batch(seed):
    """As `random_batch`, but with ratios far beyond every bound, and no retrieval."""
    logp_BT, old_BT, mask_BT, advantage_B, _ = random_batch(seed)
    return old_BT + 3 * (logp_BT - old_BT), old_BT, mask_BT, advantage_B, np.zeros(len(old_BT))


def dual_clipped(ratio, advantage, *, low, high, c):
    gain = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return max(gain, c * advantage) if advantage < 0 else gain


def mean_of(value_BT, mask_BT, aggregation):
    """The mean of the values within the mask, as each aggregation takes it."""
    rows = [
        [x for x, on in zip(*pair, strict=True) if on]
        for pair in zip(value_BT, mask_BT, strict=True)
    ]
    if aggregation == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    each = [sum(row) / (max(len(row), 1) if aggregation == "sequence_mean" else 1) for row in rows]
    return sum(each) / len(each)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_every_clipping_has_the_value_of_dual_clip_ppo(clipping, aggregation):
    with jax.enable_x64(True):
        for seed in range(3):
            logp_BT, old_BT, mask_BT, advantage_B, share_B = wide_batch(seed)
            loss, _ = loss_of(
                *doubles(logp_BT, old_BT, mask_BT, advantage_B, share_B),
                **GRPO | {"aggregation": aggregation},
                clipping=clipping,
                dual_clip=3.0,
            )

            loss_BT = [
                [-dual_clipped(math.exp(x), A, low=0.2, high=0.28, c=3.0) for x in row]
                for row, A in zip(logp_BT - old_BT, advantage_B, strict=True)
            ]
            assert float(loss) == pytest.approx(mean_of(loss_BT, mask_BT, aggregation), rel=1e-12)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_where_no_bound_is_reached_every_clipping_is_grpo_bit_for_bit(clipping):
    logp_BT, old_BT, *others = random_batch(0)
    near_BT = old_BT + np.clip(logp_BT - old_BT, -0.1, 0.1)
    plain = policy_loss(near_BT, old_BT, *others, **GRPO)
    other = loss_of(near_BT, old_BT, *others, **GRPO, clipping=clipping, dual_clip=3.0)
    assert float(plain[0]) == float(other[0])
    gradients = [
        gradient_of(partial(loss_of, **GRPO, **extra), near_BT, old_BT, *others)
        for extra in ({}, {"clipping": clipping, "dual_clip": 3.0})
    ]
    np.testing.assert_array_equal(*gradients)


def test_an_advantage_of_each_token_that_is_that_of_its_row_changes_nothing():
    logp_BT, old_BT, mask_BT, advantage_B, share_B = random_batch(1)
    advantage_BT = np.where(mask_BT, advantage_B[:, None], np.nan)
    by_row = policy_loss(logp_BT, old_BT, mask_BT, advantage_B, share_B, **GRPO)
    by_token = policy_loss(logp_BT, old_BT, mask_BT, advantage_BT, share_B, **GRPO)
    assert float(by_row[0]) == float(by_token[0])


@pytest.mark.parametrize(
    ("clipping", "expected"),
    [("ppo", [0, 2, -0.5, 0]), ("gppo", [1.28, 2, -0.5, -0.8]), ("aepo", [1.28, 2, -0.5, 0])],
)
def test_a_clipped_token_keeps_the_gradient_of_its_bound_where_the_clipping_says_so(
    clipping, expected
):
    # Ratios 2, 2, 1/2, 1/2 with advantages +, -, +, -. The gradient by log pi of a ratio's own
    # token is ratio * A; that of a kept bound is bound * A.
    logp_BT = np.log([[2.0], [2.0], [0.5], [0.5]])
    advantage_B = np.array([1.0, -1.0, 1.0, -1.0])
    gradient_BT = gradient_of(
        partial(loss_of, **GRPO, clipping=clipping),
        *(logp_BT, np.zeros((4, 1)), np.ones((4, 1), bool), advantage_B, np.zeros(4)),
    )
    wanted = -np.array([expected[0], -expected[1], -expected[2], expected[3]]) / 4
    np.testing.assert_allclose(gradient_BT[:, 0], wanted, rtol=1e-6)


def test_the_dual_clip_bounds_a_bad_tokens_loss_and_leaves_it_no_gradient():
    logp_BT = np.log([[2.9], [4.0]])
    arrays = (np.zeros((2, 1)), np.ones((2, 1), bool), np.array([-1.0, -1.0]), np.zeros(2))
    loss, metrics = loss_of(logp_BT, *arrays, **GRPO, dual_clip=3.0)
    assert float(loss) == pytest.approx((2.9 + 3.0) / 2)
    assert float(metrics["clipped"]) == 0.5
    gradient_BT = gradient_of(partial(loss_of, **GRPO, dual_clip=3.0), logp_BT, *arrays)
    np.testing.assert_allclose(gradient_BT[:, 0], [2.9 / 2, 0], rtol=1e-6)


def mixed_batch(seed):
    """A batch whose last two rows are another agent's; old log-probs are NaN there."""
    logp_BT, old_BT, mask_BT, advantage_B, _ = random_batch(seed)
    off_B = np.arange(len(old_BT)) >= len(old_BT) - 3
    old_BT = np.where(off_B[:, None], np.nan, old_BT)
    return logp_BT, old_BT, mask_BT & ~off_B[:, None], mask_BT & off_B[:, None], advantage_B


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_luffys_loss_weighs_off_policy_tokens_by_pi_over_pi_plus_gamma(aggregation):
    with jax.enable_x64(True):
        logp_BT, old_BT, on_BT, off_BT, advantage_B = mixed_batch(0)
        loss, metrics = luffy_loss(
            *doubles(logp_BT, old_BT, on_BT, off_BT, advantage_B),
            gamma=0.1,
            aggregation=aggregation,
        )
    loss_BT = np.zeros(on_BT.shape)
    weights = []
    for b, t in np.ndindex(*on_BT.shape):
        if on_BT[b, t]:
            loss_BT[b, t] = -math.exp(logp_BT[b, t] - old_BT[b, t]) * advantage_B[b]
        elif off_BT[b, t]:
            pi = math.exp(logp_BT[b, t])
            weights.append(pi / (pi + 0.1))
            loss_BT[b, t] = -weights[-1] * advantage_B[b]
    expected = mean_of(loss_BT, on_BT | off_BT, aggregation)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert float(metrics["off_policy"]) == off_BT.sum()
    assert float(metrics["tokens"]) == on_BT.sum()
    assert float(metrics["off_weight"]) == pytest.approx(np.mean(weights), rel=1e-6)


def test_without_off_policy_tokens_luffy_is_unclipped_grpo_over_tokens_bit_for_bit():
    logp_BT, old_BT, mask_BT, advantage_B, share_B = random_batch(2)
    none_BT = np.zeros_like(mask_BT)
    unclipped = GRPO | {"clip_low": 1.0, "clip_high": 1e9}
    grpo, _ = policy_loss(logp_BT, old_BT, mask_BT, advantage_B, share_B, **unclipped)
    loss, _ = luffy_loss(
        logp_BT, old_BT, mask_BT, none_BT, advantage_B, gamma=0.1, aggregation="token_mean"
    )
    assert float(loss) == float(grpo)


def test_the_gradient_of_an_off_policy_token_is_gamma_pi_over_the_squared_sum():
    pi = np.array([[0.001, 0.1, 0.9]])
    off_BT = np.ones((1, 3), bool)
    gradient_BT = gradient_of(
        partial(luffy_loss, gamma=0.1, aggregation="token_mean"),
        *(np.log(pi), np.full((1, 3), np.nan), ~off_BT, off_BT, np.array([2.0])),
    )
    np.testing.assert_allclose(gradient_BT, -2.0 * 0.1 * pi / (pi + 0.1) ** 2 / 3, rtol=1e-5)


def test_luffys_gradient_is_zero_at_other_tokens_whatever_stands_there():
    logp_BT, old_BT, on_BT, off_BT, advantage_B = mixed_batch(3)
    other_BT = ~(on_BT | off_BT)
    poisoned_BT = np.where(other_BT, np.nan, logp_BT)
    gradient_BT = gradient_of(
        partial(luffy_loss, gamma=0.1, aggregation="token_mean"),
        *(poisoned_BT, old_BT, on_BT, off_BT, advantage_B),
    )
    assert (gradient_BT[other_BT] == 0).all() and np.isfinite(gradient_BT).all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_replays_ratio_is_clipped_around_that_of_the_old_policy(aggregation):
    with jax.enable_x64(True):
        logp_BT, old_BT, mask_BT, advantage_B, _ = wide_batch(4)
        behaviour_BT = old_BT + np.random.default_rng(1).normal(0, 0.5, old_BT.shape)
        loss, _ = replay_loss(
            *doubles(logp_BT, old_BT, behaviour_BT, mask_BT, advantage_B),
            clip=0.2,
            aggregation=aggregation,
        )

    loss_BT = np.zeros(logp_BT.shape)
    for b, t in np.ndindex(*logp_BT.shape):
        r, r_old = (math.exp(x[b, t] - behaviour_BT[b, t]) for x in (logp_BT, old_BT))
        clipped = min(max(r, r_old * 0.8), r_old * 1.2)
        loss_BT[b, t] = -min(r * advantage_B[b], clipped * advantage_B[b])
    assert float(loss) == pytest.approx(mean_of(loss_BT, mask_BT, aggregation), rel=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_fresh_row_replayed_is_grpo_bit_for_bit(aggregation):
    logp_BT, old_BT, mask_BT, advantage_B, share_B = wide_batch(5)
    hyper = {"m": 0.0, "clip_low": 0.2, "clip_high": 0.2, "aggregation": aggregation}
    grpo, _ = policy_loss(logp_BT, old_BT, mask_BT, advantage_B, share_B, **hyper)
    loss, _ = replay_loss(
        logp_BT, old_BT, old_BT, mask_BT, advantage_B, clip=0.2, aggregation=aggregation
    )
    assert float(loss) == float(grpo)


def test_the_gap_of_replayed_rows_is_to_the_policy_before_the_update_not_to_the_one_that_sampled():
    logp_BT, _, mask_BT, advantage_B, _ = wide_batch(6)
    _, metrics = replay_loss(
        *(logp_BT, logp_BT, logp_BT - 0.5, mask_BT, advantage_B), clip=0.2, aggregation="token_mean"
    )
    assert metrics["logp_gap"] == 0 and metrics["logp_gap_max"] == 0
    assert metrics["ratio"] == pytest.approx(math.exp(0.5), rel=1e-6)


def test_the_gradient_of_a_replayed_token_is_its_ratio_to_the_behaviour_policy():
    # r = pi/mu = 1.5 with r_old = 1.4: inside [1.12, 1.68]; and 2.0: beyond it.
    logp_BT, old_BT, mu_BT = np.log([[1.5], [2.0]]), np.log([[1.4], [1.4]]), np.zeros((2, 1))
    gradient_BT = gradient_of(
        partial(replay_loss, clip=0.2, aggregation="token_mean"),
        *(logp_BT, old_BT, mu_BT, np.ones((2, 1), bool), np.array([1.0, 1.0])),
    )
    np.testing.assert_allclose(gradient_BT[:, 0], [-1.5 / 2, 0], rtol=1e-6)


@pytest.mark.parametrize("name", ["luffy", "replay"])
def test_micro_batches_of_the_other_losses_add_up_to_the_whole_batch(name):
    if name == "luffy":
        arrays = mixed_batch(6)
        sums_of = partial(objective.luffy_loss_sums, gamma=0.1, aggregation="sequence_mean")
    else:
        logp_BT, old_BT, mask_BT, advantage_B, _ = random_batch(6)
        arrays = (logp_BT, old_BT, old_BT - 0.1, mask_BT, advantage_B)
        sums_of = partial(objective.replay_loss_sums, clip=0.2, aggregation="sequence_mean")
    rows = len(arrays[0])

    def part(start, stop, padding=0):
        index = np.r_[start:stop, [rows - 2] * padding].astype(int)
        return sums_of(*(x[index] for x in arrays), np.arange(len(index)) < stop - start)

    whole = part(0, rows)
    first, second = part(0, 2), part(2, rows, padding=3)
    assert float(first[0] + second[0]) == pytest.approx(float(whole[0]), rel=1e-5)
    assert float(first[1] + second[1]) == float(whole[1])
    joined = add_metric_sums(first[2], second[2])
    for key, value in whole[2].items():
        assert float(joined[key]) == pytest.approx(float(value), rel=1e-5), key


def test_an_unknown_clipping_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="clipping='hard': choose one of 'ppo', 'gppo', 'aepo'"):
        policy_loss_unknown = partial(objective.policy_loss, **GRPO, clipping="hard")
        policy_loss_unknown(*random_batch(0))
