"""The sampler: prompts, keys, chunks, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def playing(make_sampler):
    return make_sampler(devices=1, driver="host")


def sample(playing, questions, *, seed=0, probability=0.0):
    return playing.sampler.sample(
        playing.params,
        jax.random.key(seed),
        questions,
        group_size=4,
        n_hybrid=2,
        temperature=1.0,
        probability=probability,
    )


def test_a_question_that_is_too_long_for_the_prompt_is_named(playing, house):
    long = dataclasses.replace(house.asked[0], id="chains-long", question="who " * 30)
    with pytest.raises(ValueError, match="rollout.prompt_tokens=20: question 'chains-long' needs"):
        sample(playing, [*house.asked[1:], long])


def test_the_same_key_gives_the_same_tapes_and_another_key_others(playing, house):
    first, again = (sample(playing, house.asked) for _ in range(2))
    for left, right in zip(*map(jax.tree.leaves, (first, again)), strict=True):
        assert (left == right).all()
    assert (first.token_BT != sample(playing, house.asked, seed=1).token_BT).any()


def test_chunks_write_the_tapes_of_one_batch(playing, make_sampler, house):
    in_two = make_sampler(devices=1, driver="host", chunks=2)
    found = sample(in_two, house.asked, probability=0.5)
    whole = sample(playing, house.asked, probability=0.5)
    for name in ("token_BT", "source_BT", "step_BT", "status_B", "length_B"):
        assert (getattr(found, name) == getattr(whole, name)).all(), name
    np.testing.assert_allclose(found.logp_BT, whole.logp_BT, atol=1e-5)
