"""Random keys: each purpose and each seed has its own."""

from __future__ import annotations

import jax

from rapo_jax.run.keys import StageKey, stage_key


def test_every_purpose_and_seed_draws_from_another_key_also_after_a_step_is_folded_in(
    small_settings,
):
    assert len(StageKey.__members__) == len(set(StageKey))  # no number twice
    keys = [
        stage_key(small_settings({"seed": seed}), stage) for seed in (0, 1) for stage in StageKey
    ]
    keys += [jax.random.fold_in(key, 0) for key in keys]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4 * len(StageKey)
