"""Updates that are not finite: the state stays as it was, their rows are named, a run ends."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rapo_jax.config import OptimizerSettings, RlSettings
from rapo_jax.model.sharding import make_mesh, place, replicated
from rapo_jax.train.groups import Groups
from rapo_jax.train.loop import MOST_SKIPS, PolicyTraining, check_skips
from rapo_jax.train.measures import RowScores
from rapo_jax.train.mini_batches import train_on_rollouts, update_metrics
from rapo_jax.train.optimizer import make_optimizer, updates_made
from rapo_jax.train.rl import open_rl, rl_step, train_rl
from rapo_jax.train.step_files import write_skipped
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, TrainState

GROUP = 4


@pytest.fixture(scope="module")
def updating(house):
    """(updater, its first state, settings with two mini-batches of the shared tapes)."""
    mesh = make_mesh(jax.devices()[:1])
    optimizer = make_optimizer(OptimizerSettings(), optax.constant_schedule(1e-2))
    state = TrainState(house.params, optimizer.init(house.params), jnp.int32(0))
    state = place(state, replicated(mesh))
    updater = Updater(
        rapo_loss(house.model, house.settings.rl),
        optimizer,
        state,
        mesh=mesh,
        rl=RlSettings(buckets=(96,), micro_tokens=16 * 96),
    )
    s = house.settings
    s = dataclasses.replace(
        s,
        rl=dataclasses.replace(s.rl, mini_batches=2, epochs=1),
        rollout=dataclasses.replace(s.rollout, questions=8, group_size=GROUP),
    )
    return updater, state, s


def train(updating, tapes, advantage_B):
    updater, state, s = updating
    state = jax.tree.map(jnp.copy, state)  # an update gives its old state away
    share_B = np.zeros(len(advantage_B), np.float32)
    batch = Batch(tapes.token_BT, tapes.source_BT, tapes.logp_BT, advantage_B, share_B)
    lengths = tapes.length_B.astype(np.int64)
    state, records = train_on_rollouts(updater, s, state, batch, lengths, jax.random.key(0), None)
    return state, *update_metrics(records)


def leaves(tree):
    return jax.tree.leaves(jax.device_get(tree))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_one_row_that_is_not_finite_skips_its_update_and_no_other(updating, tapes, bad):
    advantage_B = np.where(np.arange(32) % 2, 1, -1).astype(np.float32)
    advantage_B[5] = bad
    state, metrics, rows = train(updating, tapes, advantage_B)
    assert metrics["loss/skipped"] == 1
    assert 5 in rows and len(rows) == 16  # the rows of one of the two mini-batches
    assert all(np.isfinite(leaf).all() for leaf in leaves((state.params, state.opt_state)))
    moved = [
        (a != b).any()
        for a, b in zip(leaves(state.params), leaves(updating[1].params), strict=True)
    ]
    assert any(moved)  # by the other update
    assert int(state.step) == 2  # a skipped update counts as a step, but not in the schedule
    assert int(updates_made(state.opt_state)) == 1
    assert np.isfinite(metrics["loss/policy"])


def test_where_every_update_is_skipped_the_state_is_bit_for_bit_the_old_one(updating, tapes):
    state, metrics, rows = train(updating, tapes, np.full(32, np.nan, np.float32))
    assert metrics["loss/skipped"] == 2 and len(rows) == 32
    for new, old in zip(leaves(state.params), leaves(updating[1].params), strict=True):
        np.testing.assert_array_equal(new, old)
    for new, old in zip(leaves(state.opt_state), leaves(updating[1].opt_state), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(("value", "slope"), [(1.0, jnp.inf), (jnp.inf, 1.0), (jnp.nan, 1.0)])
def test_a_loss_and_a_gradient_are_looked_at_each(value, slope):
    @jax.custom_jvp
    def odd(x):
        return value + 0 * x

    odd.defjvp(lambda primals, tangents: (odd(*primals), slope * tangents[0]))

    def loss(params, batch, row_mask_B, reference):
        tokens = {"tokens": jnp.float32(1)}
        return odd(params["x"]), (jnp.float32(1), tokens)

    mesh = make_mesh(jax.devices()[:1])
    optimizer = make_optimizer(OptimizerSettings(), optax.constant_schedule(1e-2))
    params = {"x": jnp.float32(2)}
    state = place(TrainState(params, optimizer.init(params), jnp.int32(0)), replicated(mesh))
    updater = Updater(loss, optimizer, state, mesh=mesh, rl=RlSettings(buckets=(32,)))
    ones_B = np.ones(1, np.float32)
    batch = Batch(np.zeros((1, 32), np.int32), np.ones((1, 32), np.int32), ones_B, ones_B, ones_B)
    state, metrics = updater.update(state, batch, np.array([3]), None)
    assert bool(metrics["skipped"]) and float(state.params["x"]) == 2


def test_finite_updates_are_not_skipped(updating, tapes):
    _, metrics, rows = train(updating, tapes, np.linspace(-1, 1, 32).astype(np.float32))
    assert metrics["loss/skipped"] == 0 and rows.size == 0


def test_the_rows_of_a_skipped_update_are_written_with_what_they_held(
    house, tapes, tmp_path, capsys
):
    run = SimpleNamespace(
        workdir=tmp_path, settings=SimpleNamespace(rollout=SimpleNamespace(group_size=GROUP))
    )
    advantage_B = np.array([0.5, np.nan] * 16, np.float32)
    batch = Batch(tapes.token_BT, tapes.source_BT, tapes.logp_BT, advantage_B, advantage_B)
    reward_B = np.array([1.0, np.inf] * 16)
    scores = RowScores(reward_B, reward_B > 0, np.full(32, ""))
    groups = Groups(tuple(house.asked), tapes, scores, np.zeros(32), {}, 0, 0.0)
    write_skipped(run, 7, np.array([1, 0]), groups, batch)
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").open()]
    assert [row["row"] for row in rows] == [0, 1]
    assert [(row["reward"], row["advantage"]) for row in rows] == [("1.0", "0.5"), ("inf", "nan")]
    assert {row["question_id"] for row in rows} == {house.asked[0].id}
    assert rows[0]["step"] == 7 and rows[0]["length"] == tapes.length_B[0]
    assert "step 7: an update was not finite and was skipped" in capsys.readouterr().out


def test_several_steps_in_a_row_with_a_skipped_update_end_the_run():
    for skips in range(MOST_SKIPS):
        check_skips(skips, step=9)
    with pytest.raises(ValueError, match=r"loss/skipped: 3 steps in a row, up to step 9, had an"):
        check_skips(MOST_SKIPS, step=9)


class Unfetchable:
    """Stands for a scalar that is still being computed: who reads it waits."""

    def __float__(self):
        raise AssertionError("fetched")

    __bool__ = __array__ = __float__


def test_a_steps_updates_are_dispatched_without_a_look_at_their_metrics(
    updating, tapes, monkeypatch
):
    updater, state, s = updating
    apply = updater.apply

    def applied(*arguments):
        state, metrics = apply(*arguments)
        return state, {name: Unfetchable() for name in metrics}

    monkeypatch.setattr(updater, "apply", applied)
    advantage_B = np.where(np.arange(32) % 2, 1, -1).astype(np.float32)
    batch = Batch(tapes.token_BT, tapes.source_BT, tapes.logp_BT, advantage_B, 0 * advantage_B)
    _, records = train_on_rollouts(
        updater,
        s,
        jax.tree.map(jnp.copy, state),
        batch,
        tapes.length_B.astype(np.int64),
        jax.random.key(0),
        None,
    )
    assert len(records) == 2
    with pytest.raises(AssertionError, match="fetched"):
        update_metrics(records)


def test_the_metrics_of_the_skips_that_end_a_run_are_written(branch, metrics_of):
    run = branch({"rl.steps": 9})
    training = PolicyTraining(run, open_rl(run)[1].state, buffer="")
    with pytest.raises(ValueError, match="3 steps in a row, up to step 4"), closing(training):
        for step in training.steps():
            skipped = float(step.number != 1)  # a finite one begins the count anew
            training.end_step(
                step, training.state, lambda skipped=skipped: {"loss/skipped": skipped}
            )
    # the step after it had ended, too
    assert [row["step"] for row in metrics_of(run.workdir)] == [0, 1, 2, 3, 4, 5]


def test_rows_of_steps_that_a_resumed_run_takes_again_are_removed(branch):
    run = branch({"rl.steps": 1})
    path = run.workdir / "skipped.jsonl"
    kept = '{"step": 0, "stage": "sft", "row": 1}\n'
    path.write_text(kept + '{"step": 0, "stage": "rl", "row": 2}\n{"step": 0, "sta')
    train_rl(run)
    assert path.read_text() == kept


def test_a_skipped_update_leaves_the_learning_rate_where_it_was_in_its_warm_up(branch):
    run = branch({"optimizer.warmup": 9, "rl.mini_batches": 1})
    parts, training = open_rl(run)

    def step(state, number):
        state, metrics = rl_step(run, parts, state, number)
        return state, metrics()

    with closing(training):
        sound = jax.tree.map(jnp.copy, training.state.params)
        broken = jax.tree.map(lambda x: x * jnp.nan, sound)
        state, skipped = step(training.state.replace(params=broken), 0)
        state, again = step(state, 1)
        state, first = step(state.replace(params=sound), 2)
        _, second = step(state, 3)
    rate = run.settings.optimizer.learning_rate
    assert [skipped["loss/skipped"], first["loss/skipped"]] == [1, 0]
    shown = [each["loss/learning_rate"] for each in (skipped, again, first, second)]
    assert shown == pytest.approx([rate / 9, rate / 9, rate / 9, rate / 9 + rate * 8 / 81])
