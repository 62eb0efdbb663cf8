"""Each setting of a training reaches the function that it is for."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.config import OptimizerSettings, RlSettings
from rapo_jax.method import objective
from rapo_jax.method.advantages import group_advantage, largest_safe_a
from rapo_jax.model.scoring import log_probs
from rapo_jax.run.policy import load_policy
from rapo_jax.sampling.sampler import FOREVER
from rapo_jax.train.buffer import attach_buffer
from rapo_jax.train.calibration import guards, make_calibrator
from rapo_jax.train.evaluate import evaluate
from rapo_jax.train.groups import sample_batch
from rapo_jax.train.methods import METHODS
from rapo_jax.train.optimizer import learning_rate_schedule
from rapo_jax.train.rl import shaped_reward
from rapo_jax.train.update import luffy_loss, rapo_loss
from rapo_jax.types import Batch, Source, Status, Trajectory

PROMPT, POLICY, TOOL = int(Source.PROMPT), int(Source.POLICY), int(Source.TOOL)
RETRIEVED = int(Source.RETRIEVED)


class Asked(Exception):
    """Ends a function where it asks for what a test looks at."""


def tape_of(source_BT, step_BT, entropy_BT=None, token_BT=None):
    source_BT, step_BT = np.array(source_BT, np.int32), np.array(step_BT, np.int32)
    rows, length = source_BT.shape
    zeros_BT = np.zeros((rows, length), np.float32)
    entropy_BT = zeros_BT if entropy_BT is None else np.array(entropy_BT, np.float32)
    token_BT = source_BT if token_BT is None else np.array(token_BT, np.int32)
    status_B = np.full(rows, int(Status.ANSWERED), np.int32)
    length_B = np.full(rows, length, np.int32)
    return Trajectory(token_BT, source_BT, step_BT, zeros_BT, entropy_BT, status_B, length_B)


@pytest.mark.parametrize(("unit", "last"), [("step", FOREVER), ("trajectory", 1)])
def test_a_rollout_is_asked_for_with_the_runs_temperature_noise_and_last_retrieval(
    small_settings, unit, last
):
    s = small_settings({"rollout.temperature": 0.7, "retrieval.noise": 0.3, "retrieval.unit": unit})

    def sample(*_, **how):
        raise Asked(how)

    run = SimpleNamespace(settings=s, sampler=SimpleNamespace(sample=sample))
    with pytest.raises(Asked) as asked:
        sample_batch(run, iter([[]]), None, jax.random.key(0), step=0, probability=0.25)
    (how,) = asked.value.args
    wanted = {"temperature": 0.7, "noise": 0.3, "probability": 0.25, "last_retrieval": last}
    assert {name: how[name] for name in wanted} == wanted
    assert (how["group_size"], how["n_hybrid"]) == (s.rollout.group_size, s.n_hybrid)


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("history", ["full", "without_retrieved"])
def test_the_environment_retrieves_as_the_run_says(branch, exclude, history):
    changes = {"retrieval.exclude_same_question": exclude, "retrieval.history": history}
    asked = {}
    environment = SimpleNamespace(use_buffer=lambda *_, **how: asked.update(how))
    attach_buffer(dataclasses.replace(branch(changes), environment=environment))
    assert asked == {
        "exclude_same_question": exclude,
        "without_retrieved_history": history == "without_retrieved",
    }


def test_held_out_questions_of_later_batches_draw_with_numbers_of_their_own(branch):
    """The last batch of 11 questions is padded by a row, whose tokens count nowhere."""
    run = branch({"evaluate.rows": 8})
    first_rows, rows = [], []
    real = run.sampler.sample

    def sample(*given, **how):
        """Responses of 1, 2, 3, ... tokens, numbered over the batches."""
        tape = real(*given, **how)
        row_B = how["first_row"] + np.arange(len(tape.length_B))
        first_rows.append(how["first_row"])
        rows.extend(row_B.tolist())
        response_BT = tape.source_BT >= POLICY
        kept_BT = ~response_BT | (np.cumsum(response_BT, axis=1) <= 1 + row_B[:, None])
        return tape.replace(source_BT=np.where(kept_BT, tape.source_BT, int(Source.PAD)))

    questions = [run.questions["eval"][i] for i in range(11)]
    sampler = SimpleNamespace(sample=sample, load=run.sampler.load)
    params = load_policy(run, run.cold_start)
    found = evaluate(dataclasses.replace(run, sampler=sampler), params, questions)
    assert first_rows == [0, len(rows) // 2] and len(rows) > 11
    assert found["tokens"] == np.mean(np.arange(11) + 1)


def test_the_calibration_has_the_runs_variants(small_settings):
    """A retrieval between policy steps of entropies 0.5 and 0.1 nats."""
    tape = tape_of(
        [[PROMPT, POLICY, RETRIEVED, POLICY]] * 2, [[0, 0, 1, 2]] * 2, [[0, 0.5, 0, 0.1]] * 2
    )
    quality = np.tanh(2 * (0.5 - 0.1) / 0.5)  # Eqs. 5, 6
    for timing, factor in (("high", 0.5), ("low", 1 / 0.5)):
        changes = {"rl.timing": timing, "rollout.group_size": 2, "rollout.n_hybrid": 1}
        calibrate = make_calibrator(small_settings(changes), num_steps=3)
        calibration, _ = calibrate(tape, np.zeros(2, np.float32))
        np.testing.assert_allclose(calibration.retrieval_reward_B, quality * factor, rtol=1e-5)


def test_gigpo_without_the_weight_of_steps_is_the_advantage_of_the_group(small_settings):
    s = small_settings({"method": "gigpo", "rl.step_weight": 0.0, "rollout.group_size": 2})
    tape = tape_of([[PROMPT, POLICY, TOOL, POLICY]] * 2, [[0, 0, 0, 1]] * 2)
    reward_B = np.array([1.0, 0.0], np.float32)
    calibration, _ = make_calibrator(s, num_steps=2)(tape, reward_B)
    advantage_BT = METHODS["gigpo"].advantage(s, tape, reward_B, calibration)
    floor = {"ddof": 1, "std_floor": 1e-6}
    scaled_B = group_advantage(jnp.asarray(reward_B)[None], **floor)[0]
    share_B = advantage_BT[:, 1] / scaled_B
    np.testing.assert_allclose(share_B, share_B[0], rtol=1e-5)  # with or without the deviation
    np.testing.assert_array_equal(advantage_BT[:, [0, 2]], 0)
    np.testing.assert_array_equal(advantage_BT[:, 1], advantage_BT[:, 3])


@pytest.mark.parametrize(
    "changes", [{}, {"clipping": "gppo"}, {"dual_clip": 1.01}, {"clip_low": 0.01}]
)
def test_the_loss_of_a_run_is_clipped_as_it_says(house, tapes, changes):
    rl = dataclasses.replace(RlSettings(buckets=(96,)), clip_high=0.05, **changes)
    rows = len(tapes.length_B)
    rng = np.random.default_rng(0)
    advantage_B = rng.normal(size=rows).astype(np.float32)
    old_BT = tapes.logp_BT + rng.normal(0, 0.3, tapes.logp_BT.shape).astype(np.float32)
    ones_B, share_B = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    batch = Batch(tapes.token_BT, tapes.source_BT, old_BT, advantage_B, share_B)
    mask_BT = tapes.source_BT == Source.POLICY

    def wanted(params):
        logp_BT = log_probs(house.model, params, batch.token_BT, mask_BT)
        return objective.policy_loss_sums(
            logp_BT, old_BT, mask_BT, advantage_B, share_B, ones_B, m=rl.m, clip_low=rl.clip_low,
            clip_high=rl.clip_high, aggregation=rl.aggregation, clipping=rl.clipping,
            dual_clip=rl.dual_clip or None,
        )[0]  # fmt: skip

    def found(params):
        return rapo_loss(house.model, rl)(params, batch, ones_B, None)[0]

    ours, theirs = (jax.jit(jax.value_and_grad(f))(house.params) for f in (found, wanted))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours, theirs)


def test_luffys_ratios_are_of_the_policys_own_tokens(house, tapes):
    rows = len(tapes.length_B)
    off_B = (np.arange(rows) % 4 == 3).astype(np.float32)
    ones_B = np.ones(rows, np.float32)
    batch = Batch(
        tapes.token_BT, tapes.source_BT, tapes.logp_BT, ones_B, np.zeros(rows, np.float32), off_B
    )
    loss = jax.jit(luffy_loss(house.model, RlSettings()), static_argnums=3)
    _, (_, metrics) = loss(house.params, batch, ones_B, None)
    policy_BT = tapes.source_BT == Source.POLICY
    assert int(metrics["tokens"]) == policy_BT[off_B == 0].sum()
    assert int(metrics["off_policy"]) == policy_BT[off_B == 1].sum()


def test_a_decay_begins_where_the_warm_up_ends():
    o = OptimizerSettings(learning_rate=1.0, warmup=2, schedule="linear")
    rates = [float(learning_rate_schedule(o, steps=6)(step)) for step in range(7)]
    assert rates == pytest.approx([0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])


def test_the_longest_response_has_no_prompt(small_settings):
    """Of 100 tokens 20 are the prompt's: the penalty falls over the last 40 of 80."""
    s = small_settings()
    s = dataclasses.replace(
        s,
        rl=dataclasses.replace(s.rl, overlong=0.5),
        rollout=dataclasses.replace(s.rollout, max_tokens=100, prompt_tokens=20),
    )
    source_BT = np.full((1, 100), PROMPT)
    source_BT[0, 20:80] = POLICY
    groups = SimpleNamespace(
        scores=SimpleNamespace(reward_B=np.zeros(1)),
        trajectory=tape_of(source_BT, np.zeros((1, 100))),
    )
    assert shaped_reward(s, groups).tolist() == [-0.5]


def test_an_a_that_can_just_flip_a_sign_is_warned_of(small_settings):
    s = small_settings()
    limit = largest_safe_a(s.rollout.group_size, s.rl.ddof)
    for a, warned in ((limit, True), (limit * 0.999, False)):
        lines = guards(dataclasses.replace(s, rl=dataclasses.replace(s.rl, a=a)))
        assert any(line.startswith("rl.a=") for line in lines) == warned
