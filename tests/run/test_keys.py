"""Random keys: each purpose and each seed has its own."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from rapo_jax.rollout.slots import Draws
from rapo_jax.run.keys import HostKey, StageKey, batch_key, host_rng, stage_key


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


@pytest.mark.parametrize("purposes", [Draws, HostKey])
def test_no_two_purposes_have_one_number(purposes):
    assert len(purposes.__members__) == len(set(purposes))


def test_what_numpy_draws_on_the_host_differs_by_purpose_at_every_step():
    steps = (0, 1, *HostKey)  # a step that is the number of a purpose among them
    drawn = [host_rng(0, purpose, step, 0).integers(2**62) for purpose in HostKey for step in steps]
    assert len(set(drawn)) == len(drawn)


def test_training_seeds_numpy_by_purpose_alone():
    """The imitation of step 0x5F7 once drew what the cold start's first epochs did."""
    package = Path(__file__).parents[2] / "rapo_jax"
    seeded = {
        path.relative_to(package).as_posix()
        for room in ("run", "sampling", "stages", "train")
        for path in (package / room).rglob("*.py")
        if "default_rng" in path.read_text(encoding="utf-8")
    }
    assert seeded == {"run/keys.py"}
