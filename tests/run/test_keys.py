"""Random keys: each purpose and each seed has its own."""

from __future__ import annotations

import jax

from rapo_jax.rollout.slots import Draws
from rapo_jax.run.keys import StageKey, batch_key, stage_key


def test_every_purpose_and_seed_draws_from_another_key_also_after_a_step_is_folded_in(
    small_settings,
):
    assert len(StageKey.__members__) == len(set(StageKey))  # no number twice
    keys = [
        stage_key(small_settings({"seed": seed}), stage) for seed in (0, 1) for stage in StageKey
    ]
    keys += [jax.random.fold_in(key, 0) for key in keys]
    assert len(distinct(keys)) == 4 * len(StageKey)


def distinct(keys):
    return {tuple(jax.random.key_data(key).tolist()) for key in keys}


def test_no_batch_of_a_step_has_a_key_that_another_one_draws_from():
    step = jax.random.key(0)
    batches = [batch_key(step, number) for number in range(len(Draws) + 2)]
    assert batches[0] is step
    drawn = [jax.random.fold_in(key, draw) for key in batches for draw in Draws]
    assert len(distinct([*batches, *drawn])) == len(batches) + len(drawn)
