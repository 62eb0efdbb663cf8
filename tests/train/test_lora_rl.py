"""RL on adapters from end to end: what moves, what samples, what is resumed and exported."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing

import jax
import numpy as np
import pytest

from rapo_jax.config import LoraSettings
from rapo_jax.model.lora import ADAPTERS, detach
from rapo_jax.run.policy import load_policy
from rapo_jax.run.weights import restore
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.stages.export import export_weights
from rapo_jax.stages.score import score_file
from rapo_jax.train.rl import open_rl, rl_step, train_rl

LORA = {"rank": 3, "alpha": 6.0, "targets": ("q", "v", "down"), "merge": False}
CHANGES = {f"model.lora.{key}": value for key, value in LORA.items()} | {
    "optimizer.learning_rate": 1e-2,
    "rl.steps": 4,
}


@pytest.fixture
def adapted(branch, trunk):
    """A run as the trunk's, that trains adapters on the trunk's cold start."""

    def make(changes=None, *, name="run"):
        run = branch(CHANGES | (changes or {}), name=name)
        lora: LoraSettings = run.settings.model.lora
        model = dataclasses.replace(trunk.model, lora=lora)
        sampler = Sampler(
            model,
            run.settings.rollout,
            run.tokens,
            run.environment,
            run.mesh,
            system=run.system,
            embed=run.encoder.embed,
            query_shape=run.encoder.query_shape,
        )
        return dataclasses.replace(run, model=model, sampler=sampler)

    return make


def train(run):
    before = jax.device_get(load_policy(run, run.cold_start))
    return before, jax.device_get(train_rl(run).state)


def identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def kept():
    """Filled by the first test that trains four steps without a break."""
    return {}


@pytest.fixture
def four_steps(adapted, kept, metrics_of):
    """(run, parameters before, state after, metric lines) of four steps in one go."""
    if not kept:
        run = adapted(name="whole")
        before, state = train(run)
        rows = metrics_of(run.workdir, timeless=True)
        kept.update(run=run, before=before, state=state, rows=rows)
    return kept


def test_steps_of_rl_move_adapters_and_leave_every_bit_of_the_base(four_steps, trunk):
    before, after = four_steps["before"], four_steps["state"].params
    identical(detach(after), detach(before))
    identical(detach(after), restore(trunk.cold_start).params)  # float32: no cast in between
    for name, pair in after[ADAPTERS].items():
        assert (pair["a"] != before[ADAPTERS][name]["a"]).any(), name
        assert not before[ADAPTERS][name]["b"].any() and pair["b"].any(), name
    moments = [x for x in jax.tree.leaves(four_steps["state"].opt_state) if np.ndim(x)]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(after[ADAPTERS]))


def test_what_samples_is_what_is_trained_at_first_and_after_every_update(four_steps):
    gaps = [row["loss/logp_gap_max"] for row in four_steps["rows"]]
    assert len(gaps) == 4 and max(gaps) < 1e-4
    assert any(row["loss/grad_norm"] > 0 for row in four_steps["rows"][:3])  # before the last gap


def test_adapters_that_are_merged_to_sample_sample_what_is_trained(adapted, metrics_of):
    run = adapted({"model.lora.merge": True, "rl.steps": 2}, name="merged")
    train(run)
    rows = metrics_of(run.workdir)
    assert len(rows) == 2 and max(row["loss/logp_gap_max"] for row in rows) < 1e-4


def test_two_steps_and_two_after_a_resume_are_four(adapted, four_steps, metrics_of):
    train(adapted({"rl.steps": 2}))
    run = adapted()
    _, state = train(run)
    identical(state, four_steps["state"])
    assert metrics_of(run.workdir, timeless=True) == four_steps["rows"]


def test_going_on_with_another_alpha_is_refused_before_a_step_is_taken(adapted):
    run = adapted({"rl.steps": 2})
    train(run)
    with pytest.raises(ValueError, match=r"alpha=12\.0: the adapters in .* trained with 6\.0"):
        train_rl(adapted({"model.lora.alpha": 12.0}))


def test_the_exported_folder_scores_as_the_run_does(four_steps, tmp_path):
    run = four_steps["run"]
    tokens = np.random.default_rng(0).integers(0, run.model.vocab, 40).tolist()
    (tmp_path / "in.jsonl").write_text(json.dumps({"tokens": tokens}) + "\n")

    def scores(settings, workdir, name):
        paths = {"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / name)}
        user_tools = dataclasses.replace(settings.score, **paths)
        settings = dataclasses.replace(settings, score=user_tools)
        score_file(settings, workdir, devices=jax.devices()[:1])
        return np.array(json.loads((tmp_path / name).read_text())["logp"])

    s = run.settings
    made = dataclasses.replace(s.export, folder=str(tmp_path / "made"))
    export_weights(dataclasses.replace(s, export=made), run.workdir, devices=jax.devices()[:1])
    plain = dataclasses.replace(s.model.lora, rank=0)
    alone = dataclasses.replace(
        s,
        model=dataclasses.replace(s.model, folder=made.folder, lora=plain),
        sft=dataclasses.replace(s.sft, folder=""),
    )
    of_run = scores(s, run.workdir, "run.jsonl")
    np.testing.assert_allclose(scores(alone, tmp_path / "none", "made.jsonl"), of_run, atol=1e-5)
    cold = dataclasses.replace(s, model=dataclasses.replace(s.model, lora=plain))
    assert np.abs(scores(cold, tmp_path / "none", "cold.jsonl") - of_run).max() > 1e-3


def test_a_kl_penalty_keeps_the_first_adapters_and_shares_the_base_with_the_policy(adapted):
    run = adapted({"rl.kl": 0.01, "rl.steps": 2}, name="kl")
    parts, training = open_rl(run)
    with closing(training):
        reference, policy = parts.reference, training.state.params
        for ours, its in zip(*map(jax.tree.leaves, map(detach, (reference, policy))), strict=True):
            assert ours is its
        first = jax.device_get(reference[ADAPTERS])
        for step in training.steps():
            training.end_step(step, *rl_step(run, parts, training.state, step.number))
        identical(jax.device_get(reference[ADAPTERS]), first)  # updates overwrote their own alone
        moved = jax.device_get(training.state.params[ADAPTERS])
        assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, moved, first))))
