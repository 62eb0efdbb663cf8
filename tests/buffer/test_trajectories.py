"""The reward-aware filter, and the step traces of a trajectory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.buffer import trajectories
from rapo_jax.buffer.keys import key_text
from rapo_jax.buffer.trajectories import (
    UNSCORED,
    AgentTrajectory,
    Splitting,
    best_of,
    filter_counts,
    split,
    split_all,
)

STEPS = [
    "<think>a</think><search>x</search><result>1</result>",
    "<think>b</think><python>y</python><result>2</result>",
    "<think>c</think><answer>\\boxed{2}</answer>",
]
STEP = Splitting("step", include_answers=True, mask="", max_chars=1000)
WHOLE = STEP._replace(unit="trajectory")

LOWEST = -math.inf


def trajectory(reward, *, question_id="q", steps=STEPS) -> AgentTrajectory:
    return AgentTrajectory(question_id, "what is it?", list(steps), reward, "expert")


def test_the_filter_keeps_the_highest_rewards_and_ties_in_sampling_order():
    sampled = [trajectory(r, steps=[str(i)]) for i, r in enumerate([0.5, 1.0, 0.5, -1.0, 1.0, 0.5])]
    kept = best_of(sampled, 4, least=LOWEST)
    assert [each.steps[0] for each in kept] == ["1", "4", "0", "2"]


def test_a_question_whose_rewards_are_all_below_the_least_has_no_trajectory():
    rewards = {"a": [0.0, 1.0, 0.5], "b": [0.0, 0.4]}
    sampled = [trajectory(r, question_id=q) for q, each in rewards.items() for r in each]
    kept = best_of(sampled, 2, least=0.5)
    assert [(each.question_id, each.reward) for each in kept] == [("a", 1.0), ("a", 0.5)]


@given(st.lists(st.floats(-1, 1.1), max_size=12), st.integers(1, 6))
def test_no_dropped_trajectory_has_more_reward_than_a_kept_one(rewards, keep):
    kept = [each.reward for each in best_of([trajectory(r) for r in rewards], keep, least=LOWEST)]
    assert kept == sorted(rewards, reverse=True)[:keep]


def test_an_unscored_trajectory_and_keeping_nothing_are_refused():
    with pytest.raises(ValueError, match="reward=nan"):
        best_of([trajectory(UNSCORED)], 1, least=LOWEST)
    with pytest.raises(ValueError, match="buffer.keep=0"):
        best_of([trajectory(1.0)], 0, least=LOWEST)


def test_each_step_is_keyed_by_the_question_and_the_steps_before_it():
    step_traces = split(trajectory(1.0), STEP)
    assert [row.value for row in step_traces] == STEPS
    assert [row.step for row in step_traces] == [0, 1, 2]
    assert [row.key for row in step_traces] == [
        "what is it?",
        "what is it?\n" + STEPS[0],
        "what is it?\n" + STEPS[0] + STEPS[1],
    ]


def test_answer_steps_can_be_left_out():
    step_traces = split(trajectory(1.0), STEP._replace(include_answers=False))
    assert [row.value for row in step_traces] == STEPS[:2]
    (whole,) = split(trajectory(1.0), WHOLE._replace(include_answers=False))
    assert whole.value == STEPS[0] + STEPS[1]


def test_a_whole_trajectory_is_one_trace_keyed_by_the_question_alone():
    (step_trace,) = split(trajectory(1.0), WHOLE)
    assert (step_trace.key, step_trace.value, step_trace.step) == ("what is it?", "".join(STEPS), 0)


@pytest.mark.parametrize("how", [STEP, WHOLE])
def test_a_trajectory_without_any_text_gives_no_step_trace(how):
    assert split(trajectory(1.0, steps=["", " \n"]), how) == []


def test_a_blank_step_is_left_out_and_the_others_keep_their_number():
    step_traces = split(trajectory(1.0, steps=["a", "", "b"]), STEP)
    assert [(row.step, row.value, row.key) for row in step_traces] == [
        (0, "a", "what is it?"),
        (2, "b", "what is it?\na"),
    ]


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="retrieval.unit='token'"):
        split(trajectory(1.0), STEP._replace(unit="token"))


def test_step_traces_come_from_the_best_trajectories_of_every_question():
    sampled = [
        trajectory(0.1, question_id="b"),
        trajectory(1.0, question_id="a"),
        trajectory(0.9, question_id="b"),
    ]
    kept = best_of(sampled, 1, least=LOWEST)
    step_traces = split_all(kept, STEP)
    assert [(row.question_id, row.reward) for row in step_traces] == [("b", 0.9)] * 3 + [
        ("a", 1.0)
    ] * 3
    assert filter_counts(sampled, kept) == {
        "trajectories_sampled": 3,
        "trajectories_kept": 2,
        "trajectories_kept_by_origin": {"expert": 2},
        "mean_reward_sampled": pytest.approx((0.1 + 1.0 + 0.9) / 3),
        "mean_reward_kept": pytest.approx((0.9 + 1.0) / 2),
    }


@given(
    st.lists(st.sampled_from(["<think>Ann has 123</think>", "", "12", "-" * 200, "Alexandria"])),
    st.booleans(),
)
def test_keys_are_those_of_the_whole_history(steps, masked):
    how = Splitting(
        "step", include_answers=True, mask=r"[A-Z]\w+|\d+" if masked else "", max_chars=9
    )
    traces = split(AgentTrajectory("id", "q?", steps, 1.0, "test"), how)
    for trace in traces:
        history = "".join(steps[: trace.step])
        assert trace.key == key_text("q?", history, mask=how.mask, max_chars=how.max_chars)


def test_a_long_trajectory_is_split_without_reading_its_history_again_and_again(monkeypatch):
    read = []

    def count(question, history, **how):
        read.append(len(history))
        return key_text(question, history, **how)

    monkeypatch.setattr(trajectories, "key_text", count)
    how = Splitting("step", include_answers=True, mask=r"\d+", max_chars=100)
    split(AgentTrajectory("id", "q?", ["0123456789"] * 3000, 1.0, "test"), how)
    assert len(read) == 3000 and max(read) <= trajectories.HISTORY_MARGIN * 100 + 10
