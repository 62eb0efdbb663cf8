"""The sampler's own part: prompts, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def ask(make_sampler, house):
    playing = make_sampler(devices=1, driver="host")

    def ask(questions):
        return playing.sampler.sample(
            playing.params,
            jax.random.key(0),
            questions,
            group_size=4,
            n_hybrid=2,
            temperature=1.0,
        )

    return ask


def test_a_question_that_is_too_long_for_the_prompt_is_named(ask, house):
    long = dataclasses.replace(house.asked[0], id="chains-long", question="who " * 30)
    with pytest.raises(ValueError, match="rollout.prompt_tokens=20: question 'chains-long' needs"):
        ask([*house.asked[1:], long])


def test_the_same_key_gives_the_same_tapes_and_another_key_others(ask, house, tapes):
    again = ask(house.asked)
    for found, wanted in zip(*map(jax.tree.leaves, (again, ask(house.asked))), strict=True):
        assert (found == wanted).all()
    assert (again.token_BT != tapes.token_BT).any()  # those may retrieve: another plan


def test_waves_write_the_tapes_of_one_batch(ask, make_sampler, house):
    playing = make_sampler(devices=1, driver="host")
    sampler = playing.sampler
    sampler._settings = dataclasses.replace(sampler._settings, chunks=2)
    found = sampler.sample(
        playing.params,
        jax.random.key(0),
        house.asked,
        group_size=4,
        n_hybrid=2,
        temperature=1.0,
        probability=0.5,
    )
    sampler._settings = dataclasses.replace(sampler._settings, chunks=1)
    whole = sampler.sample(
        playing.params,
        jax.random.key(0),
        house.asked,
        group_size=4,
        n_hybrid=2,
        temperature=1.0,
        probability=0.5,
    )
    for name in ("token_BT", "source_BT", "step_BT", "status_B", "length_B"):
        assert (getattr(found, name) == getattr(whole, name)).all(), name
    np.testing.assert_allclose(found.logp_BT, whole.logp_BT, atol=1e-5)
