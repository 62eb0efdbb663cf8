"""The groups of a step: resampled ones, trajectories of the buffer in them, and anchor states."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rapo_jax.rollout.slots import Draws
from rapo_jax.tasks import Question
from rapo_jax.train.groups import (
    AgentTapes,
    Groups,
    equal_groups,
    put_agent_tapes,
    replayed,
    resampled,
    sample_batch,
    sampled_rows,
)
from rapo_jax.train.measures import RowScores, host_metrics
from rapo_jax.train.methods import anchors
from rapo_jax.train.replay import PastGroup, Replay
from rapo_jax.train.sft import Examples
from rapo_jax.types import Source, Status, Trajectory

G, T = 3, 6
PROMPT, POLICY, TOOL = int(Source.PROMPT), int(Source.POLICY), int(Source.TOOL)


def questions(*names):
    return tuple(
        Question(id=name, question=name, answers=("a",), kind="k", source="s") for name in names
    )


def tape(rows):
    """A tape whose tokens are the number of their row."""
    row_BT = np.repeat(np.arange(rows)[:, None], T, axis=1).astype(np.int32)
    ones_BT = np.ones((rows, T), np.float32)
    status_B = np.full(rows, int(Status.STOPPED), np.int32)
    return Trajectory(
        row_BT, np.full_like(row_BT, POLICY), 0 * row_BT, -ones_BT, ones_BT, status_B,
        np.full(rows, T, np.int32),
    )  # fmt: skip


def groups_of(rewards, *, first):
    """Groups q0, q1, ... from the number `first` on; their tokens are 100 * that number + row."""
    reward_B = np.asarray(rewards, float).reshape(-1)
    trajectory = tape(len(reward_B))
    trajectory = trajectory.replace(token_BT=trajectory.token_BT + 100 * first)
    names = [f"q{first + number}" for number in range(len(rewards))]
    scores = RowScores(reward_B, reward_B > 0, np.full(len(reward_B), ""))
    counts = {"sampled": 10, "slot_ticks": 20}
    return Groups(questions(*names), trajectory, scores, np.zeros(len(reward_B)), counts, 0, 1.0)


def settings_with(small_settings, resample):
    return small_settings({"rl.resample": resample, "rollout.group_size": G, "rollout.n_hybrid": 0})


BATCHES = [
    groups_of([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]], first=0),
    groups_of([[0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]], first=4),
    groups_of([[0, 0, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]], first=8),
]


def test_groups_of_equal_rewards_make_room_for_later_ones_with_a_spread(small_settings):
    asked = []

    def sample(number):
        asked.append(number)
        return BATCHES[number]

    found = resampled(BATCHES[0], sample, settings_with(small_settings, 10))
    assert asked == [1, 2]  # the third batch of questions is not needed: all groups have a spread
    assert [question.id for question in found.questions] == ["q5", "q1", "q8", "q9"]
    rewards = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]]
    np.testing.assert_array_equal(found.scores.reward_B.reshape(-1, G), rewards)
    # a group's rows came along: 400 + rows 3 to 5, rows 3 to 5, 800 + rows 0 to 5
    wanted = [403, 404, 405, 3, 4, 5, 800, 801, 802, 803, 804, 805]
    np.testing.assert_array_equal(found.trajectory.token_BT[:, 0], wanted)
    assert (found.further_batches, found.slot_counts["sampled"], found.scoring_seconds) == (
        2,
        30,
        3,
    )


def test_a_budget_that_is_used_up_leaves_the_groups_without_a_spread(small_settings):
    found = resampled(BATCHES[0], BATCHES.__getitem__, settings_with(small_settings, 1))
    assert [question.id for question in found.questions] == ["q5", "q1", "q2", "q3"]
    assert equal_groups(found, G).tolist() == [False, False, True, True]
    assert found.further_batches == 1


def test_groups_that_all_have_a_spread_are_sampled_once(small_settings):
    varied = BATCHES[2]._replace(scores=RowScores(np.tile([0.0, 1, 0], 4), *BATCHES[2].scores[1:]))
    assert resampled(varied, pytest.fail, settings_with(small_settings, 3)) is varied


def test_a_further_batch_is_sampled_with_a_key_that_the_first_ones_rollout_does_not_use(
    small_settings,
):
    """A rollout folds `Draws` into the key that it is given."""
    keys = []

    class Sampler:
        counts = {}

        def sample(self, weights, key, asked, **how):
            keys.append(tuple(jax.random.key_data(key).tolist()))
            raise LookupError

    run = SimpleNamespace(settings=small_settings(), sampler=Sampler())
    step = jax.random.key(3)
    for number in range(5):
        with pytest.raises(LookupError):
            sample_batch(
                run, itertools.repeat(questions("q")), {}, step, number, step=0, probability=0.0
            )
    drawn = [jax.random.key_data(jax.random.fold_in(step, draw)) for draw in Draws]
    assert keys[0] == tuple(jax.random.key_data(step).tolist())
    assert len(set(keys)) == 5 and not set(keys) & {tuple(key.tolist()) for key in drawn}


def agent_tapes():
    """One tape for question q1 and two for q2."""
    token_BT = np.array([[71] * T, [72] * T, [73] * T], np.int32)
    source_BT = np.array([[PROMPT, POLICY, POLICY, TOOL, POLICY, 0]] * 3, np.int32)
    step_BT = np.array([[0, 0, 0, 0, 1, 0]] * 3, np.int32)
    examples = Examples(token_BT, source_BT, step_BT, np.array([5, 5, 5]), np.arange(3))
    return AgentTapes(examples, {"q1": [0], "q2": [1, 2]})


def test_the_last_row_of_a_group_becomes_a_trajectory_of_its_question_where_there_is_one():
    before = tape(3 * G)
    after, off_policy_B = put_agent_tapes(
        before, questions("q0", "q1", "q2"), agent_tapes(), np.random.default_rng(0), group_size=G
    )
    assert off_policy_B.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1]
    assert after.token_BT[5].tolist() == [71] * T and after.token_BT[8][0] in (72, 73)
    assert after.source_BT[5].tolist() == [PROMPT, POLICY, POLICY, TOOL, POLICY, 0]
    assert (after.status_B[5], after.length_B[5]) == (Status.ANSWERED, 5)
    assert not after.logp_BT[5].any() and not after.entropy_BT[8].any()
    kept = off_policy_B == 0
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[kept], y[kept]), after, before)
    assert before.token_BT[5, 0] == 5  # the tape that was given is left as it is


def test_without_a_trajectory_for_any_question_the_groups_stay_as_they_are():
    before = tape(2 * G)
    rng = np.random.default_rng(0)
    after, off_policy_B = put_agent_tapes(
        before, questions("x", "y"), agent_tapes(), rng, group_size=G
    )
    assert not off_policy_B.any()
    np.testing.assert_array_equal(after.token_BT, before.token_BT)


def test_steps_of_a_question_have_one_anchor_where_their_last_observation_is_the_same():
    # Columns: two tokens of a step, its observation, another step, its observation, a last token.
    source_BT = np.array([[POLICY, POLICY, TOOL, POLICY, TOOL, POLICY]] * 4, np.int32)
    step_BT = np.array([[0, 0, 0, 1, 1, 2]] * 4, np.int32)
    token_BT = np.array(
        [[1, 2, 50, 3, 60, 4], [9, 9, 50, 3, 61, 4], [1, 2, 50, 3, 60, 4], [1, 2, 60, 3, 50, 4]],
        np.int32,
    )
    trajectory = tape(4).replace(token_BT=token_BT, source_BT=source_BT, step_BT=step_BT)
    anchor_BS, left_BS = anchors(trajectory, group_size=2, num_steps=4)
    # Rows 0 and 1 are one question, 2 and 3 another: numbers are given anew for each.
    assert anchor_BS.tolist() == [[0, 1, 2, -1], [0, 1, 3, -1], [0, 1, 2, -1], [0, 2, 1, -1]]
    assert left_BS.tolist() == [[2, 1, 0, 0]] * 4


def store_of(*batches):
    replay = Replay(capacity=3)
    for batch in batches:
        for place, question in enumerate(batch.questions):
            rows = slice(place * G, (place + 1) * G)
            tape, scores = jax.tree.map(lambda x, rows=rows: x[rows], batch[1:3])
            replay.add(PastGroup(question, tape, scores))
    return replay


def names_in(replay):
    every = replay.draw(np.random.default_rng(0), len(replay), without=())
    return {group.question.id for group in every}


def test_the_store_keeps_the_newest_groups_with_a_spread_one_of_each_question():
    replay = store_of(*BATCHES)  # with a spread: q1, q5, q8, q9, q10
    assert names_in(replay) == {"q8", "q9", "q10"}
    (old,) = [
        g for g in replay.draw(np.random.default_rng(0), 3, without=()) if g.question.id == "q9"
    ]
    again = old._replace(trajectory=old.trajectory.replace(token_BT=old.trajectory.token_BT + 1))
    replay.add(again)
    assert len(replay) == 3
    (new,) = replay.draw(np.random.default_rng(0), 1, without=("q8", "q10"))
    assert new is again
    assert replay.draw(np.random.default_rng(0), 2, without=("q8", "q10")) == []
    for name in ("q8", "q11"):  # q8 was the oldest and is now newer than the others
        replay.add(old._replace(question=dataclasses.replace(old.question, id=name)))
    assert names_in(replay) == {"q8", "q9", "q11"}


def test_the_store_comes_back_bit_for_bit_in_its_order_and_a_damaged_file_is_named(tmp_path):
    replay, path = store_of(*BATCHES), tmp_path / "replay" / "4.npz"
    replay.save(path)
    again = Replay(capacity=3)
    again.load(path)
    for left, right in zip(
        *(store.draw(np.random.default_rng(1), 3, without=()) for store in (replay, again)),
        strict=True,
    ):
        assert left.question == right.question
        jax.tree.map(np.testing.assert_array_equal, left[1:], right[1:])
    empty = Replay(capacity=3)
    empty.save(path)
    again.load(path)
    assert len(again) == 0
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        ValueError, match=r"4\.npz: the past groups cannot be read .* start a new --workdir"
    ):
        again.load(path)


def replay_settings(small_settings):
    changes = {"method": "rollout_replay", "rl.replay_share": 0.5, "rollout.questions": 4}
    return small_settings(changes | {"rollout.group_size": G, "rollout.n_hybrid": 0})


def halves(batch):
    """Its first two groups."""
    rows = jax.tree.map(lambda x: x[: 2 * G], batch[1:4])
    return batch._replace(
        questions=batch.questions[:2], trajectory=rows[0], scores=rows[1], off_policy_B=rows[2]
    )


def test_past_groups_complete_a_batch_from_the_second_epoch_and_fresh_ones_before(small_settings):
    s, rng = replay_settings(small_settings), np.random.default_rng(0)
    replay = store_of(*BATCHES)
    asked = []

    def sample(number):
        asked.append(number)
        return halves(BATCHES[1])

    first = replayed(halves(BATCHES[0]), sample, replay, s, rng, first_epoch=True)
    assert asked == [1]
    assert [q.id for q in first.questions] == ["q0", "q1", "q4", "q5"]
    assert not first.off_policy_B.any()
    assert names_in(replay) == {"q10", "q1", "q5"}  # q0 and q4 have no spread

    later = replayed(halves(BATCHES[2]), pytest.fail, replay, s, rng, first_epoch=False)
    ids = [q.id for q in later.questions]
    assert ids[:2] == ["q8", "q9"] and set(ids[2:]) < {"q10", "q1", "q5"}
    assert later.off_policy_B.tolist() == [0] * 2 * G + [1] * 2 * G
    for place in (2, 3):  # the rows of a past group are those of its question
        rewards = later.scores.reward_B[place * G : (place + 1) * G].tolist()
        assert rewards == {"q10": [1, 1, 0], "q1": [0, 1, 0], "q5": [1, 0, 0]}[ids[place]]


def test_calls_of_a_rollout_are_of_those_that_the_step_sampled(small_settings):
    """One call in every row that is sampled is one call of a rollout, whatever a step trains on."""

    def calls_of(s, groups, sampled):
        return host_metrics({"search": sampled}, rows=sampled_rows(s, groups), user_tools=())

    s, rng = replay_settings(small_settings), np.random.default_rng(0)
    replay = store_of(BATCHES[0], BATCHES[1])
    later = replayed(halves(BATCHES[2]), pytest.fail, replay, s, rng, first_epoch=False)
    assert len(later.off_policy_B) == 4 * G
    assert calls_of(s, later, 2 * G)["rollout/tool_calls"] == 1
    first = replayed(
        halves(BATCHES[0]), lambda _: halves(BATCHES[1]), replay, s, rng, first_epoch=True
    )
    assert calls_of(s, first, 4 * G)["rollout/tool_calls"] == 1
    s = small_settings({"rollout.questions": 4, "rl.resample": 10, "rollout.group_size": G})
    found = resampled(BATCHES[0], BATCHES.__getitem__, s)
    assert len(found.off_policy_B) == 4 * G
    assert calls_of(s, found, 3 * 4 * G)["rollout/tool_calls"] == 1


def test_too_few_past_groups_leave_a_batch_fresh(small_settings):
    s, rng = replay_settings(small_settings), np.random.default_rng(0)
    replay = Replay(capacity=3)
    found = replayed(
        halves(BATCHES[0]), lambda number: halves(BATCHES[1]), replay, s, rng, first_epoch=False
    )
    assert not found.off_policy_B.any() and found.further_batches == 1
