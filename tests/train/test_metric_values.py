"""Metrics of a step from counts and rows of a few numbers."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.method.calibrate import Calibration
from rapo_jax.train.groups import Groups
from rapo_jax.train.measures import (
    RowScores,
    host_metrics,
    rollout_metrics,
    schedule_metrics,
    time_metrics,
)
from rapo_jax.train.mini_batches import UpdateRecord, train_on_rollouts, update_metrics
from rapo_jax.train.rl import group_metrics
from rapo_jax.types import Batch, Source, Status, Trajectory


def test_rates_of_the_buffer_are_of_its_hits_and_queries_and_errors_of_all_kinds():
    counts = {"search": 6, "python": 2, "buffer/queries": 4, "buffer/hits": 2}
    counts |= {"buffer/similarity_sum": 1.5, "buffer/same_question": 1}
    counts |= {f"outcome/{kind}": n for n, kind in enumerate(("error", "flooded", "timeout"), 1)}
    found = host_metrics(counts, rows=4, user_tools=())
    wanted = {
        "rollout/tool_calls": 2.0, "tools/search": 1.5, "tools/python": 0.5, "tools/errors": 3.0,
        "tools/timeouts": 3.0, "buffer/count": 2.0, "buffer/hit_rate": 0.5,
        "buffer/similarity": 0.75, "buffer/same_question": 0.25,
    }  # fmt: skip
    assert found == wanted


def test_the_hosts_work_is_taken_from_the_rollout_and_what_it_waited_is_not_its_work():
    counts = {"seconds": 5.0, "waited": 2.0}
    seconds = {"reshard": 1.0, "rollout": 10.0, "update": 4.0}
    assert time_metrics(seconds, counts, scoring_seconds=0.5) == {
        "time/reshard": 1.0, "time/rollout": 6.5, "time/waiting": 2.0, "time/host": 3.5,
        "time/update": 4.0,
    }  # fmt: skip


def test_slots_are_counted_by_ticks_and_tokens_that_were_read_by_rows():
    counts = {"sampled": 30, "absorbed": 8, "slot_ticks": 40, "waiting": 4, "host_calls": 3}
    assert schedule_metrics(counts, rows=4) == {
        "rollout/sampled_rows": 4.0, "rollout/sampled_tokens": 30.0, "rollout/absorbed_tokens": 2.0,
        "time/slots_used": 0.75, "time/slots_waiting": 0.1, "time/host_calls": 3.0,
    }  # fmt: skip


def test_rewards_are_shown_apart_for_on_policy_and_hybrid_rows():
    source_BT = np.tile([Source.PROMPT, Source.POLICY, Source.TOOL, Source.POLICY], (4, 1))
    zeros_BT, ones_B = np.zeros(source_BT.shape), np.ones(4, np.int32)
    entropy_BT = np.where(source_BT == Source.POLICY, [0, 0.2, 0, 0.4], 9.0)
    trajectory = Trajectory(
        source_BT,
        source_BT,
        0 * source_BT,
        zeros_BT,
        entropy_BT,
        ones_B * Status.ANSWERED,
        4 * ones_B,
    )
    reward_B = np.array([0.0, 0.5, 1.0, 1.0])
    scores = RowScores(reward_B, reward_B == 1, np.array(["", "no answer", "", ""]))
    Z_B, share_B = np.array([9.0, 9.0, 1.0, 3.0]), np.array([0.0, 0.0, 0.2, 0.6])
    calibration = Calibration(reward_B, share_B, Z_B, zeros_BT, zeros_BT, source_BT)
    found = rollout_metrics(trajectory, scores, np.arange(4) >= 2, calibration)
    wanted = {
        "reward/mean": 0.625, "reward/on_policy": 0.25, "reward/hybrid": 1.0,
        "reward/accuracy": 0.5, "reward/format_bad": 0.25, "reward/retrieval": 2.0,
        "entropy/policy": 0.3, "rollout/tokens": 3.0, "rollout/policy_tokens": 2.0,
        "rollout/retrieved_share": 0.2,
    }  # fmt: skip
    assert found == pytest.approx(wanted)


def test_rows_that_the_policy_did_not_sample_count_in_no_metric_of_the_rollout(small_settings):
    changes = {"rollout.questions": 2, "rollout.group_size": 2, "rollout.n_hybrid": 1}
    s = small_settings(changes)
    source_BT = np.tile([Source.PROMPT, Source.POLICY, Source.TOOL, Source.PAD], (4, 1))
    zeros_BT, ones_B = np.zeros(source_BT.shape), np.ones(4, np.int32)
    trajectory = Trajectory(
        source_BT,
        source_BT,
        0 * source_BT,
        zeros_BT,
        zeros_BT,
        ones_B * Status.ANSWERED,
        3 * ones_B,
    )
    reward_B = np.array([0.25, 9.0, 0.75, 1.0])  # on-policy, hybrid, on-policy, hybrid
    scores = RowScores(reward_B, reward_B == 1, np.full(4, ""))
    calibration = Calibration(reward_B, 0 * reward_B, reward_B, zeros_BT, zeros_BT, source_BT)
    off_policy_B = np.array([0, 1, 0, 0])  # the row of reward 9
    found = group_metrics(s, Groups((), trajectory, scores, off_policy_B, {}, 0, 0.0), calibration)
    wanted = {"reward/mean": 2 / 3, "reward/on_policy": 0.5, "reward/hybrid": 1.0}
    wanted["reward/retrieval"] = 1.0
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


NAMES = ("loss", "clipped", "ratio", "grad_norm", "padding", "zero_advantage_rows", "tokens")


def record(rows, *, gap, skipped=0.0, **more):
    values = dict.fromkeys(NAMES, 1.0) | {"logp_gap": gap, "logp_gap_max": gap, "skipped": skipped}
    return UpdateRecord(np.array(rows), {k: jnp.float32(v) for k, v in (values | more).items()})


def test_the_gap_of_sampler_and_trainer_is_that_of_the_first_update():
    found, rows = update_metrics([record([0], gap=0.0), record([1], gap=1.0, loss=3.0)])
    assert (found["loss/logp_gap"], found["loss/logp_gap_max"]) == (0.0, 0.0)
    assert found["loss/policy"] == 2.0 and rows.size == 0


def test_a_sum_that_a_loss_adds_to_its_metrics_is_shown_by_its_name():
    found, rows = update_metrics(
        [record([0], gap=0, mine=2.0), record([1], gap=0, mine=4.0, skipped=1.0)]
    )
    assert found["loss/mine"] == 2.0 and rows.tolist() == [1]  # a skipped update is left out


def test_each_epoch_takes_all_groups_in_an_order_of_its_own(small_settings):
    changes = {"rl.epochs": 2, "rl.mini_batches": 4, "rollout.questions": 8}
    s = small_settings(changes)
    rows = 8 * s.rollout.group_size
    ones_BT, ones_B = np.ones((rows, 4), np.int32), np.ones(rows, np.float32)
    batch = Batch(ones_BT, ones_BT, ones_BT, ones_B, ones_B)
    updater = SimpleNamespace(update=lambda state, *_, **__: (state, {}))
    key, lengths = jax.random.key(0), np.full(rows, 4)
    _, records = train_on_rollouts(updater, s, None, batch, lengths, key, None)
    epochs = [[r.row_numbers.tolist() for r in records[i : i + 4]] for i in (0, 4)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(rows))
    assert epochs[0] != epochs[1]
