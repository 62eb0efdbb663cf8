"""What updates make of retrieved traces: `rl.retrieved_traces`."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rapo_jax.config import RlSettings
from rapo_jax.method.tape import without_retrieved_tokens
from rapo_jax.model.scoring import log_probs
from rapo_jax.model.sharding import make_mesh
from rapo_jax.train.calibration import guards
from rapo_jax.train.removal import RETRIEVED_TRACES, better_with_traces, without_traces
from rapo_jax.train.rescoring import make_rescorer
from rapo_jax.train.rl import train_rl
from rapo_jax.types import Batch, Source

Q, P, T, R, _ = (int(s) for s in (
    Source.PROMPT, Source.POLICY, Source.TOOL, Source.RETRIEVED, Source.PAD,
))  # fmt: skip
SOURCE_BT = np.array([
    [Q, P, T, P, T, P, _, _],  # on-policy
    [Q, P, T, R, R, P, T, P],  # a trace of two tokens after the first observation
    [Q, P, T, R, P, T, R, P],  # two traces
    [Q, P, T, R, P, _, _, _],
], np.int32)  # fmt: skip
TOKEN_BT = np.where(SOURCE_BT == _, 0, 10 * np.arange(4)[:, None] + np.arange(8))
UNITS = ("step", "trajectory")
LENGTH_B = (SOURCE_BT != _).sum(1)


def batch_of(advantage_B):
    return Batch(
        TOKEN_BT,
        SOURCE_BT,
        np.where(SOURCE_BT == P, -0.5, 0).astype(np.float32),
        np.asarray(advantage_B, np.float32),
        np.array([0, 2 / 7, 2 / 7, 1 / 4], np.float32),
        np.zeros(4, np.float32),
    )


def rescore_as(value):
    """A scorer that gives each token of the policy the same log-probability."""

    def rescore(params, batch, length_B):
        np.testing.assert_array_equal((batch.source_BT != _).sum(1), length_B)
        return np.where(batch.source_BT == P, np.float32(value), 0)

    return rescore


def test_what_follows_a_retrieved_token_moves_up_and_zeros_fill_the_row():
    assert without_retrieved_tokens(TOKEN_BT, SOURCE_BT).tolist() == [
        [0, 1, 2, 3, 4, 5, 0, 0],
        [10, 11, 12, 15, 16, 17, 0, 0],
        [20, 21, 22, 24, 25, 27, 0, 0],
        [30, 31, 32, 34, 0, 0, 0, 0],
    ]


def test_rows_that_do_better_with_a_trace_are_those_of_positive_advantage():
    assert better_with_traces(batch_of([2, 1, -1, 0])).tolist() == [1]
    of_tokens = np.where(SOURCE_BT == P, [[1], [-1], [2], [0]], 0)
    assert better_with_traces(batch_of(of_tokens)).tolist() == [2]


def test_a_row_without_its_traces_is_the_tape_of_a_policy_that_never_read_them():
    batch = batch_of([2, 1, -1, 0])
    after, length_B = without_traces(rescore_as(-3), None, batch, LENGTH_B, np.array([1]))
    assert after.source_BT[1].tolist() == [Q, P, T, P, T, P, _, _]
    assert after.token_BT[1].tolist() == [10, 11, 12, 15, 16, 17, 0, 0]
    assert after.old_logp_BT[1].tolist() == [0, -3, 0, -3, 0, -3, 0, 0]
    assert length_B.tolist() == [6, 6, 8, 5]
    # what the calibration found in the rollout stays
    assert after.advantage.tolist() == [2, 1, -1, 0]
    assert after.retrieved_share_B[1] == np.float32(2 / 7)
    others = [0, 2, 3]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[others], y[others]), after, batch)
    assert batch.token_BT[1, 3] == 13  # the batch that was given is left as it is


def test_advantages_of_tokens_move_with_their_tokens():
    batch = batch_of(np.where(SOURCE_BT == P, np.arange(8), 0))
    after, _lengths = without_traces(rescore_as(0), None, batch, LENGTH_B, np.array([1, 2]))
    assert after.advantage.tolist() == [
        [0, 1, 0, 3, 0, 5, 0, 0],
        [0, 1, 0, 5, 0, 7, 0, 0],
        [0, 1, 0, 4, 0, 7, 0, 0],
        [0, 1, 0, 0, 4, 0, 0, 0],
    ]


def test_without_such_rows_the_batch_is_the_one_that_was_given():
    batch = batch_of([1, 0, -1, 0])
    same, length_B = without_traces(pytest.fail, None, batch, LENGTH_B, np.zeros(0, np.int64))
    assert same is batch and length_B is LENGTH_B


def test_rows_that_are_read_stay_and_the_share_of_those_removed_is_a_metric():
    batch = batch_of([2, 1, -1, 0])
    read, length_B, metrics = RETRIEVED_TRACES["read"](pytest.fail, None, batch, LENGTH_B)
    assert read is batch and length_B is LENGTH_B and metrics == {}
    _, length_B, metrics = RETRIEVED_TRACES["removed"](rescore_as(-3), None, batch, LENGTH_B)
    assert length_B.tolist() == [6, 6, 8, 5]
    assert metrics == {"update/rows_without_traces": 1 / 4}


def train(run):
    return jax.device_get(train_rl(run).state)


REMOVED = {"rl.retrieved_traces": "removed", "checkpoint.every": 2}


def test_a_run_without_traces_in_its_updates_differs_and_resumes_exactly(branch, metrics_of):
    whole = train(branch(REMOVED, name="whole"))
    train(branch(REMOVED | {"rl.steps": 2}, name="parts"))
    parts = branch(REMOVED, name="parts")
    jax.tree.map(np.testing.assert_array_equal, whole, train(parts))
    rows = metrics_of(parts.workdir)
    assert max(row["update/rows_without_traces"] for row in rows) > 0
    read = branch({"checkpoint.every": 2}, name="read")
    differs = jax.tree.map(lambda x, y: bool((x != y).any()), whole.params, train(read).params)
    assert any(jax.tree.leaves(differs))
    assert not any("update/rows_without_traces" in row for row in metrics_of(read.workdir))


def test_without_retrieval_it_changes_no_bit(branch):
    none = {"retrieval.probability": 0.0, "checkpoint.every": 4}
    states = [train(branch(none | REMOVED, name="a")), train(branch(none, name="b"))]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_past_groups_keep_the_traces_that_they_were_sampled_with(small_settings):
    changes = {"method": "rollout_replay", "retrieval.always": True, "rl.replay_share": 0.5}
    assert small_settings(changes).rl.retrieved_traces == "read"
    with pytest.raises(ValueError, match="rl.retrieved_traces='removed': past rows keep .* 'read'"):
        small_settings(changes | {"rl.retrieved_traces": "removed"})


def test_where_nothing_is_retrieved_there_is_nothing_to_remove(small_settings):
    with pytest.raises(ValueError, match="rl.retrieved_traces='removed': no rollout retrieves; me"):
        small_settings({"method": "grpo", "rl.retrieved_traces": "removed"})
    always = {"method": "grpo", "retrieval.always": True, "rl.retrieved_traces": "removed"}
    assert small_settings(always).rl.retrieved_traces == "removed"


def test_a_whole_trajectory_that_is_removed_is_warned_of(small_settings):
    of = {unit: small_settings({"retrieval.unit": unit} | REMOVED) for unit in UNITS}
    assert [len(guards(of[unit])) for unit in UNITS] == [0, 1]
    assert "answers that nothing supports" in guards(of["trajectory"])[0]


def test_rows_are_scored_anew_as_the_policy_scores_the_shorter_tape(house, tapes):
    """On eight devices: rows of both kinds, several to a micro-batch."""
    source_BT = np.asarray(tapes.source_BT)
    rows = np.flatnonzero((source_BT == R).any(1))
    blank = np.zeros(len(source_BT), np.float32)
    batch = Batch(tapes.token_BT, source_BT, tapes.logp_BT, blank, blank, blank)
    rescore = make_rescorer(house.model, make_mesh(), RlSettings(buckets=(96,), micro_tokens=768))
    after, length_B = without_traces(rescore, house.params, batch, tapes.length_B, rows)
    assert len(rows) > 1
    for b in rows:
        kept_T = np.flatnonzero(source_BT[b] != R)[: length_B[b]]
        token_1T, policy_1T = tapes.token_BT[b][None, kept_T], (source_BT[b] == P)[None, kept_T]
        wanted_1T = log_probs(house.model, house.params, token_1T, policy_1T)
        np.testing.assert_allclose(after.old_logp_BT[b, : len(kept_T)], wanted_1T[0], atol=1e-5)
        assert not after.old_logp_BT[b, len(kept_T) :].any()
