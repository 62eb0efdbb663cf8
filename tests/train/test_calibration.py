"""The calibration with a run's values: diagnostics, and warnings about the values."""

from __future__ import annotations

import jax.numpy as jnp

from rapo_jax.config import RlSettings
from rapo_jax.method.calibrate import Calibration
from rapo_jax.train.calibration import diagnostics
from rapo_jax.types import Source


def test_diagnostics_are_the_shares_at_which_a_floor_decides():
    source_BS = jnp.array([[Source.POLICY, Source.RETRIEVED, Source.POLICY]] * 4, jnp.int32)
    entropy_BS = jnp.array([[0.5, 0.0, 0.1]] * 4)
    Z_B = jnp.array([0.1, 0.3, 0.2, 0.2])
    rows = jnp.zeros(4)
    calibration = Calibration(rows, rows, Z_B, jnp.zeros((4, 3)), entropy_BS, source_BS)
    reward_B = jnp.array([1.0, 1.0, 0.0, 1.0])  # the first group has no spread
    rl = RlSettings(entropy_floor=0.2, ddof=1, std_floor=0.01)
    scalars = diagnostics(calibration, reward_B, jnp.zeros(4), rl, group_size=2)
    assert scalars["reward/nonzero_groups"] == 0.5
    assert scalars["floor/entropy_active"] == 0.5  # of the policy steps: 0.1 of 0.5 and 0.1
    assert scalars["floor/std_active"] == 0.5  # Z_ret of the second group


def test_rows_that_others_wrote_are_no_steps_below_the_floor():
    source_BS = jnp.full((4, 1), Source.POLICY, jnp.int32)
    entropy_BS = jnp.array([[1.0], [1.0], [1.0], [0.0]])  # the last: a trajectory of the buffer
    rows = jnp.zeros(4)
    calibration = Calibration(rows, rows, rows, jnp.zeros((4, 1)), entropy_BS, source_BS)
    for off_policy_B, share in (([0, 0, 0, 1], 0), ([0, 0, 0, 0], 0.25), ([1, 1, 1, 1], 0)):
        rl = RlSettings(entropy_floor=0.2)
        scalars = diagnostics(calibration, rows, jnp.array(off_policy_B), rl, group_size=4)
        assert scalars["floor/entropy_active"] == share
