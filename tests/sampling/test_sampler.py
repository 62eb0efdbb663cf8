"""The sampler: prompts, keys, slots, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax.sampling.tapes import segments
from rapo_jax.text.protocol import CALLS, parse_step
from rapo_jax.text.protocols import Protocol
from rapo_jax.types import Source, Status


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


@pytest.mark.parametrize(("slots", "used"), [(5, 5), (100, 32)])
def test_rows_through_few_slots_get_the_tapes_of_one_slot_each(
    playing, make_sampler, house, slots, used
):
    few = make_sampler(devices=1, driver="host", slots=slots)
    found = sample(few, house.asked, probability=0.5)
    counts = few.sampler.counts
    assert counts["slot_ticks"] == used * counts["ticks"]
    whole = sample(playing, house.asked, probability=0.5)
    for name in ("token_BT", "source_BT", "step_BT", "status_B", "length_B"):
        assert (getattr(found, name) == getattr(whole, name)).all(), name
    np.testing.assert_allclose(found.logp_BT, whole.logp_BT, atol=1e-5)


def test_counts_are_those_of_the_tapes(playing, house):
    tape = sample(playing, house.asked, probability=0.5)
    counts = playing.sampler.counts
    assert counts["sampled"] == (tape.source_BT == Source.POLICY).sum()
    absorbed_BT = (tape.source_BT == Source.TOOL) | (tape.source_BT == Source.RETRIEVED)
    assert counts["absorbed"] == absorbed_BT.sum()
    assert counts["host_calls"] > 1 and counts["waiting"] >= 0
    assert counts["slot_ticks"] == len(tape.length_B) * counts["ticks"] > counts["sampled"]


def test_rows_of_several_calls_are_those_of_one_by_their_numbers(playing, house):
    """So that a suite's answers depend on no batch size."""

    def answers(questions, first_row):
        tape = playing.sampler.sample(
            playing.params, jax.random.key(3), questions, temperature=1.0, first_row=first_row
        )
        return [tape.token_BT[b, : tape.length_B[b]].tolist() for b in range(len(questions))]

    whole = answers(house.asked[:8], 0)
    assert answers(house.asked[:4], 0) + answers(house.asked[4:8], 4) == whole
    assert answers(house.asked[4:8], 0) != whole[4:]


def test_a_row_whose_last_step_stops_or_answers_ends_as_stopped_in_a_users_protocol(
    make_sampler, house
):
    protocol = Protocol("mine", ("</search>",), parse_step, (), at_eos="parse", corrective="?")
    tokens = dataclasses.replace(house.tokens, protocol=protocol)
    playing = make_sampler(devices=1, driver="host", tokens=tokens, max_calls=99)
    tape = sample(playing, house.asked)
    ended = []
    for b in np.flatnonzero(tape.status_B == Status.STOPPED):
        made = [s.text for s in segments(tokens, tape, b) if s.source == Source.POLICY]
        steps = [parse_step(text).kind for text in made]
        calls = [tool for tool, _ in playing.environment.calls[b]]
        assert calls == [kind for kind in steps if kind in CALLS]
        ended += steps[len(calls) :]  # nothing where the last step was empty
    assert set(ended) == {"stop", "answer"}
