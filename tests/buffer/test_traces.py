from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.buffer.traces import (
    AgentTrajectory,
    best_of,
    group_by_question,
    make_items,
    split,
)

STEPS = [
    "<think>a</think><search>x</search><result>1</result>",
    "<think>b</think><python>y</python><result>2</result>",
    "<think>c</think><answer>\\boxed{2}</answer>",
]
ALL = {"include_answers": True, "mask": "", "max_chars": 1000}


def trace(reward: float, *, question_id: str = "q", steps: list[str] = STEPS) -> AgentTrajectory:
    return AgentTrajectory(question_id, "what is it?", list(steps), reward, "expert")


def test_the_filter_keeps_the_highest_rewards_and_ties_in_sampling_order():
    sampled = [trace(r, steps=[str(i)]) for i, r in enumerate([0.5, 1.0, 0.5, -1.0, 1.0, 0.5])]
    kept = best_of({"q": sampled}, 4)["q"]
    assert [item.steps[0] for item in kept] == ["1", "4", "0", "2"]


@given(st.lists(st.floats(-1, 1.1), max_size=12), st.integers(1, 6))
def test_no_dropped_trajectory_has_more_reward_than_a_kept_one(rewards, keep):
    kept = [item.reward for item in best_of({"q": [trace(r) for r in rewards]}, keep)["q"]]
    assert kept == sorted(rewards, reverse=True)[:keep]


def test_a_reward_that_is_no_number_and_keeping_nothing_are_refused():
    with pytest.raises(ValueError, match="reward=nan"):
        best_of({"q": [trace(math.nan)]}, 1)
    with pytest.raises(ValueError, match="buffer.keep=0"):
        best_of({"q": [trace(1.0)]}, 0)


def test_each_step_is_keyed_by_the_question_and_the_steps_before_it():
    items = split(trace(1.0), unit="step", **ALL)
    assert [item.value for item in items] == STEPS
    assert [item.step for item in items] == [0, 1, 2]
    assert [item.key for item in items] == [
        "what is it?",
        "what is it?\n" + STEPS[0],
        "what is it?\n" + STEPS[0] + STEPS[1],
    ]


def test_answer_steps_can_be_left_out():
    options = {**ALL, "include_answers": False}
    assert [item.value for item in split(trace(1.0), unit="step", **options)] == STEPS[:2]
    (whole,) = split(trace(1.0), unit="trajectory", **options)
    assert whole.value == STEPS[0] + STEPS[1]


def test_a_whole_trajectory_is_one_item_keyed_by_the_question_alone():
    (item,) = split(trace(1.0), unit="trajectory", **ALL)
    assert (item.key, item.value, item.step) == ("what is it?", "".join(STEPS), 0)


@pytest.mark.parametrize("unit", ["step", "trajectory"])
def test_a_trajectory_without_any_text_gives_no_item(unit):
    assert split(trace(1.0, steps=["", " \n"]), unit=unit, **ALL) == []


def test_a_blank_step_is_left_out_and_the_others_keep_their_number():
    items = split(trace(1.0, steps=["a", "", "b"]), unit="step", **ALL)
    assert [(item.step, item.value, item.key) for item in items] == [
        (0, "a", "what is it?"),
        (2, "b", "what is it?\na"),
    ]


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="buffer.unit='token'"):
        split(trace(1.0), unit="token", **ALL)


def test_items_come_from_the_best_trajectories_of_every_question():
    sampled = [
        trace(0.1, question_id="b"),
        trace(1.0, question_id="a"),
        trace(0.9, question_id="b"),
    ]
    items = make_items(sampled, keep=1, unit="step", **ALL)
    assert [(item.question_id, item.reward) for item in items] == [("b", 0.9)] * 3 + [
        ("a", 1.0)
    ] * 3
    assert list(group_by_question(sampled)) == ["b", "a"]
