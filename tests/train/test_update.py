"""One update: the same however rows are split or spread, moved by the policy's tokens alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rapo_jax.config import OptimizerSettings, RlSettings
from rapo_jax.method.advantages import group_advantage
from rapo_jax.model.scoring import score
from rapo_jax.model.sharding import make_mesh, place, replicated
from rapo_jax.train.calibration import make_calibrator
from rapo_jax.train.mini_batches import without_zero_advantage_rows
from rapo_jax.train.optimizer import make_optimizer
from rapo_jax.train.sft import imitation_loss
from rapo_jax.train.update import Updater, fetched, rapo_loss
from rapo_jax.types import Batch, Source, TrainState

GROUP = 4
BUCKETS = (64, 96)


@pytest.fixture(scope="module")
def reward_B(tapes):
    return np.random.default_rng(0).uniform(-1, 1, len(tapes.length_B)).astype(np.float32)


def batch_of(tapes, found):
    return Batch(
        tapes.token_BT,
        tapes.source_BT,
        tapes.logp_BT,
        np.asarray(found.advantage_B),
        np.asarray(found.retrieved_share_B, np.float32),
    )


def calibrated(settings, tapes, reward_B, **changes):
    settings = dataclasses.replace(
        settings,
        rl=dataclasses.replace(settings.rl, **changes),
        rollout=dataclasses.replace(settings.rollout, group_size=GROUP),
    )
    calibrate = make_calibrator(settings, num_steps=settings.rollout.most_steps)
    return jax.device_get(calibrate(tapes, reward_B)[0])


@pytest.fixture(scope="module")
def batch(house, tapes, reward_B):
    """The shared tapes with RAPO's advantages; half of their rows may hold retrieved traces."""
    found = batch_of(tapes, calibrated(house.settings, tapes, reward_B))
    assert found.retrieved_share_B.max() > 0.2
    return found


@pytest.fixture(scope="module")
def start(house):
    """Parameters a little away from those that wrote the tapes, so that ratios are not 1."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + np.float32(0.03) * rng.standard_normal(x.shape).astype(np.float32),
        house.params,
    )


def updated(loss, params, batch, length_B, *, micro_tokens, devices=1, reference=None, **weight):
    """Host copies of the state after one Adam update, and the metrics."""
    mesh = make_mesh(jax.devices()[:devices])
    optimizer = make_optimizer(
        OptimizerSettings(clip_norm=0.5, b2=0.99, eps=1e-6), optax.constant_schedule(1e-2)
    )
    state = TrainState(params, optimizer.init(params), jnp.int32(0))
    state = place(state, replicated(mesh))
    rl = RlSettings(buckets=BUCKETS, micro_tokens=micro_tokens)
    updater = Updater(loss, optimizer, state, mesh=mesh, rl=rl)
    length_B = length_B.astype(np.int64)
    state, metrics = updater.update(state, batch, length_B, reference, **weight)
    return jax.device_get(state), fetched(metrics)


@pytest.fixture(scope="module")
def whole(house, start, batch, tapes):
    """The update with all rows at once."""
    loss = rapo_loss(house.model, house.settings.rl)
    return updated(loss, start, batch, tapes.length_B, micro_tokens=32 * 96)


def close(found, wanted):
    state, metrics = found
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(wanted[0]), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)
    for name in set(metrics) - {"padding"}:
        assert metrics[name] == pytest.approx(wanted[1][name], rel=1e-4, abs=1e-6), name


def test_the_update_does_not_depend_on_how_rows_are_split(house, start, batch, tapes, whole):
    loss = rapo_loss(house.model, house.settings.rl)
    split = updated(loss, start, batch, tapes.length_B, micro_tokens=5 * 96)  # 32 rows: a remainder
    close(split, whole)
    assert 0 < split[1]["clipped"] < 1
    assert split[1]["padding"] < whole[1]["padding"]  # short rows went into the narrow bucket


def test_the_update_does_not_depend_on_the_number_of_devices(house, start, batch, tapes, whole):
    loss = rapo_loss(house.model, house.settings.rl)
    close(updated(loss, start, batch, tapes.length_B, micro_tokens=32 * 96, devices=8), whole)


def test_the_metrics_are_those_of_the_batch(batch, tapes, whole):
    _, metrics = whole
    assert metrics["tokens"] == (tapes.source_BT == Source.POLICY).sum()
    assert metrics["padding"] == pytest.approx(1 - tapes.length_B.sum() / (32 * 96))
    assert 0 < metrics["logp_gap"] < metrics["logp_gap_max"]


@pytest.fixture(scope="module")
def gradient_of(house):
    """(params, batch) -> (loss sum, gradient of it), with the small config's method."""
    loss = rapo_loss(house.model, house.settings.rl)

    @jax.jit
    def program(params, batch):
        row_mask_B = jnp.ones(len(batch.advantage))
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, batch, row_mask_B, None
        )
        return value, gradient

    return lambda params, batch: jax.device_get(program(params, batch))


def identical(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_is_that_of_the_log_probs_of_policy_tokens_alone(house, batch, gradient_of):
    batch = batch.replace(retrieved_share_B=np.zeros_like(batch.retrieved_share_B))
    policy_BT = batch.source_BT == Source.POLICY
    # at pi_theta = pi_old the clip is idle: dL = - sum_i A_i / |S_i| sum_j d log pi
    weight_BT = policy_BT * (batch.advantage / policy_BT.sum(axis=1))[:, None]

    def by_hand(params):
        return -(weight_BT * score(house.model, params, batch.token_BT)[0]).sum()

    wanted = jax.jit(jax.grad(by_hand))(house.params)
    _, found = gradient_of(house.params, batch)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(found)) > 1e-2


@pytest.mark.parametrize("source", [Source.PROMPT, Source.TOOL, Source.RETRIEVED, Source.PAD])
def test_what_was_recorded_at_tokens_of_other_sources_is_never_read(
    start, batch, gradient_of, source
):
    here_BT = batch.source_BT == source
    assert here_BT.any()
    spoilt = batch.replace(old_logp_BT=np.where(here_BT, np.nan, batch.old_logp_BT))
    identical(gradient_of(start, spoilt), gradient_of(start, batch))


def test_a_row_without_policy_tokens_moves_nothing(start, batch, gradient_of):
    foreign_BT = np.where(batch.source_BT == Source.POLICY, Source.TOOL, batch.source_BT)
    value, gradient = gradient_of(start, batch.replace(source_BT=foreign_BT.astype(np.int32)))
    assert value == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_before_the_first_update_sampler_and_trainer_agree_on_every_log_prob(
    house, batch, tapes, whole
):
    loss = rapo_loss(house.model, house.settings.rl)
    _, metrics = updated(loss, house.params, batch, tapes.length_B, micro_tokens=32 * 96)
    assert metrics["logp_gap_max"] < 1e-5
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def plain_gradient_of(house):
    """The same with m = 0: GRPO's loss."""
    loss = rapo_loss(house.model, dataclasses.replace(house.settings.rl, m=0.0))

    @jax.jit
    def program(params, batch):
        row_mask_B = jnp.ones(len(batch.advantage))
        return jax.value_and_grad(lambda *each: loss(*each)[0])(params, batch, row_mask_B, None)

    return lambda params, batch: jax.device_get(program(params, batch))


def grpo_batch(tapes, reward_B, settings):
    """GRPO's batch: the outcome advantage alone, nothing shaped."""
    found = batch_of(tapes, calibrated(settings, tapes, reward_B, a=0.0))
    reward_QG = jnp.asarray(reward_B.reshape(-1, GROUP))
    wanted_QG = group_advantage(reward_QG, ddof=settings.rl.ddof, std_floor=settings.rl.std_floor)
    np.testing.assert_allclose(found.advantage, wanted_QG.reshape(-1), atol=1e-6)
    return found.replace(retrieved_share_B=np.zeros(len(reward_B), np.float32))


def test_with_m_and_a_zero_rapo_is_grpo_bit_for_bit(
    house, start, tapes, reward_B, plain_gradient_of
):
    settings = house.settings
    off = batch_of(tapes, calibrated(settings, tapes, reward_B, a=0.0))
    grpo = grpo_batch(tapes, reward_B, settings)
    assert off.retrieved_share_B.any()  # with m = 0 the share has no say
    identical(plain_gradient_of(start, off), plain_gradient_of(start, grpo))


def test_without_hybrid_rollouts_rapo_is_grpo_bit_for_bit(
    house, start, make_sampler, reward_B, gradient_of, plain_gradient_of
):
    playing = make_sampler(devices=1, driver="host")
    sampler = playing.sampler
    how = {"group_size": GROUP, "temperature": 1.0}
    asked = (playing.params, jax.random.key(0), house.asked)
    without = sampler.sample(*asked, n_hybrid=0, **how)
    # the program that could retrieve, with nothing to retrieve, writes the same tapes
    never = sampler.sample(*asked, n_hybrid=2, probability=0.0, **how)
    identical(without, never)
    settings = house.settings
    rapo = batch_of(without, calibrated(settings, without, reward_B))
    grpo = grpo_batch(without, reward_B, settings)
    identical(rapo, grpo)
    identical(gradient_of(start, rapo), plain_gradient_of(start, grpo))


def test_the_kl_penalty_is_zero_at_the_reference_and_adds_beta_times_its_metric_elsewhere(
    house, start, batch, tapes, whole
):
    loss = rapo_loss(house.model, dataclasses.replace(house.settings.rl, kl=5.0))
    how = {"micro_tokens": 32 * 96, "length_B": tapes.length_B}
    _, home = updated(loss, start, batch, reference=start, **how)
    _, away = updated(loss, start, batch, reference=house.params, **how)
    assert home["kl"] == pytest.approx(0, abs=1e-5)
    assert home["loss"] == pytest.approx(whole[1]["loss"], abs=1e-5)
    assert away["kl"] > 1e-3
    assert away["loss"] == pytest.approx(home["loss"] + 5 * away["kl"], rel=1e-4)


def test_imitation_sums_the_negative_log_probs_of_policy_tokens(house, batch, tapes):
    row_mask_B = np.arange(len(tapes.length_B)) % 3 > 0
    program = jax.jit(imitation_loss(house.model))
    loss_sum, (weight, _) = program(house.params, batch, row_mask_B.astype(np.float32), None)
    wanted = -tapes.logp_BT[row_mask_B][tapes.source_BT[row_mask_B] == Source.POLICY]
    assert weight == len(wanted)
    assert loss_sum == pytest.approx(wanted.sum(), rel=1e-5)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sequence_sum"])
def test_rows_without_an_advantage_are_left_out_and_change_no_parameter(
    house, start, batch, tapes, aggregation
):
    loss = rapo_loss(house.model, dataclasses.replace(house.settings.rl, aggregation=aggregation))
    advantage_B = np.where(np.arange(len(tapes.length_B)) % 8 < 4, batch.advantage, 0)
    batch = batch.replace(advantage=advantage_B.astype(np.float32))
    all_rows = updated(loss, start, batch, tapes.length_B, micro_tokens=8 * 96)
    busy, length_B, zero_advantage_weight = without_zero_advantage_rows(
        batch, tapes.length_B, aggregation=aggregation
    )
    assert len(length_B) == len(tapes.length_B) / 2
    few_rows = updated(
        loss,
        start,
        busy,
        length_B,
        micro_tokens=8 * 96,
        zero_advantage_weight=zero_advantage_weight,
    )
    for left, right in zip(jax.tree.leaves(few_rows[0]), jax.tree.leaves(all_rows[0]), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)
    assert few_rows[1]["loss"] == pytest.approx(all_rows[1]["loss"], rel=1e-4)


def test_a_batch_without_any_advantage_keeps_a_row_and_moves_nothing(house, start, batch, tapes):
    batch = batch.replace(advantage=np.zeros_like(batch.advantage))
    busy, length_B, zero_advantage_weight = without_zero_advantage_rows(
        batch, tapes.length_B, aggregation="sequence_mean"
    )
    assert length_B.tolist() == [tapes.length_B.min()]
    assert zero_advantage_weight == len(tapes.length_B) - 1
    state, metrics = updated(
        rapo_loss(house.model, house.settings.rl), start, busy, length_B, micro_tokens=8 * 96
    )
    assert metrics["grad_norm"] == 0
    for left, right in zip(jax.tree.leaves(state.params), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(left, right)
