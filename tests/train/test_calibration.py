"""The calibration with a run's values: diagnostics, and warnings about the values."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.config import RlSettings
from rapo_jax.method.calibrate import Calibration
from rapo_jax.train.calibration import diagnostics
from rapo_jax.train.methods import METHODS
from rapo_jax.types import Source


def test_diagnostics_are_the_shares_at_which_a_floor_decides():
    trip_S, pad = [Source.POLICY, Source.RETRIEVED, Source.POLICY], Source.PAD
    source_BS = jnp.array(
        [
            [*trip_S, pad],  # H_before 0.5: not below the floor, though H_after is
            [*trip_S, pad],  # H_before 0.1: below
            [*trip_S, Source.RETRIEVED],  # not below; and a retrieval that nothing follows
            [Source.POLICY, Source.POLICY, pad, pad],  # no retrieval
        ]
    )
    entropy_BS = jnp.array([[0.5, 0, 0.1, 0], [0.1, 0, 0.5, 0], [0.5, 0, 0.1, 0], [0.1, 0.1, 0, 0]])
    Z_B = jnp.array([0.1, 0.3, 0.2, 0.2])
    rows = jnp.zeros(4)
    calibration = Calibration(rows, rows, Z_B, jnp.zeros((4, 4)), entropy_BS, source_BS)
    reward_B = jnp.array([1.0, 1.0, 0.0, 1.0])  # the first group has no spread
    rl = RlSettings(entropy_floor=0.2, ddof=1, std_floor=0.01)
    scalars = diagnostics(calibration, reward_B, rl, group_size=2)
    assert scalars["reward/nonzero_groups"] == 0.5
    assert scalars["floor/entropy_active"] == pytest.approx(1 / 3)
    assert scalars["floor/std_active"] == 0.5  # Z_ret of the second group


def test_without_retrievals_no_entropy_floor_decides():
    source_BS = jnp.full((4, 1), Source.POLICY, jnp.int32)
    rows = jnp.zeros(4)
    calibration = Calibration(rows, rows, rows, jnp.zeros((4, 1)), jnp.zeros((4, 1)), source_BS)
    scalars = diagnostics(calibration, rows, RlSettings(entropy_floor=0.2), group_size=4)
    assert scalars["floor/entropy_active"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_whether_the_retrieval_reward_reaches_its_advantages(
    small_settings, tapes, method
):
    s = small_settings({"rollout.tree_rows": 2 if method == "tree_grpo" else 1})
    reward_B = np.random.default_rng(0).random(len(tapes.length_B)).astype(np.float32)
    steps_BS = np.zeros((len(reward_B), 8), np.int32)

    def advantage(retrieval_reward):
        calibrated_B = reward_B - reward_B.mean() + retrieval_reward
        calibration = Calibration(calibrated_B, *[None] * 4, steps_BS)
        return np.asarray(METHODS[method].advantage(s, tapes, reward_B, calibration))

    reaches = bool((advantage(0.0) != advantage(0.3)).any())
    assert reaches == METHODS[method].retrieval_reward
