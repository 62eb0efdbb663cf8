"""GiGPO in a protocol with steps beyond the calls of a row."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import jax
import numpy as np

from rapo_jax.run.run import open_run
from rapo_jax.text.protocols import rapo
from rapo_jax.train.rl import open_rl
from rapo_jax.types import Source, Status, Trajectory

PATIENT = dataclasses.replace(rapo(), name="patient", refused_turns=8)
GROUP, STEPS = 4, 4 + 8 + 1
"""Of a row: its calls (rollout.max_calls), the refused ones, and the answer; one token each."""


def test_gigpo_counts_the_steps_that_a_protocol_allows_beyond_the_calls_of_a_row(branch):
    changes = {"method": "gigpo", "protocol": f"{__name__}:PATIENT", "stages": ("rl", "evaluate")}
    settings = branch(changes).settings
    assert settings.rollout.max_calls == 4
    with closing(open_run(settings, branch().workdir, devices=jax.devices()[:1])) as run:
        parts, training = open_rl(run)
        training.close()
    ones_BT = np.ones((GROUP, STEPS), np.float32)
    step_BT = np.tile(np.arange(STEPS, dtype=np.int32), (GROUP, 1))
    source_BT = np.full_like(step_BT, Source.POLICY)
    ends = np.full(GROUP, Status.ANSWERED, np.int32), np.full(GROUP, STEPS, np.int32)
    tape = Trajectory(step_BT, source_BT, step_BT, ones_BT, ones_BT, *ends)
    reward_B = np.float32([1, 0, 0, 0])
    calibration, _ = jax.device_get(parts.calibrate(tape, reward_B))
    found_BT = parts.method.advantage(settings, tape, reward_B, calibration)
    # All steps begin after the same text, none. A step of the first row returns 0.95 ** left, where
    # `left` steps follow it, and those of other rows 0; its reward is 0.75 above the mean.
    return_T = 0.95 ** np.arange(STEPS - 1, -1, -1)
    wanted_T = 0.75 + return_T - return_T.sum() / (GROUP * STEPS)
    np.testing.assert_allclose(found_BT[0], wanted_T, rtol=1e-5)
