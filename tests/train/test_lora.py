"""Training adapters: the base never moves, and is found again wherever adapters are read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from rapo_jax.config import LoraSettings, ModelSettings, OptimizerSettings, RlSettings, Settings
from rapo_jax.model.describe import describe
from rapo_jax.model.lora import ADAPTERS, detach
from rapo_jax.model.sharding import make_mesh
from rapo_jax.model.transformer import forward, init_params, unembed
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.run.policy import (
    fresh_state,
    load_policy,
    newest_weights,
    policy_shapes,
    start_state,
)
from rapo_jax.stages.export import export_weights
from rapo_jax.stages.score import score_file
from rapo_jax.train.optimizer import make_optimizer
from rapo_jax.train.sft import imitation_loss
from rapo_jax.train.update import Updater
from rapo_jax.types import Batch, Source, TrainState
from tests.model.checkpoints import load_model, logits_of, make_model, save_model

LORA = {"rank": 3, "alpha": 6.0, "targets": ("q", "v", "down"), "merge": False}
VOCAB, SLOTS = 23, 16
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (16, SLOTS), np.int32)
BATCH = Batch(
    TOKENS,
    np.where(np.arange(SLOTS) < 4, Source.PROMPT, Source.POLICY) * np.ones((16, 1), int),
    np.zeros((16, SLOTS), np.float32),
    np.ones(16, np.float32),
    np.zeros(16, np.float32),
)
OPTIMIZER = make_optimizer(
    OptimizerSettings(clip_norm=1.0, b2=0.99, eps=1e-6), optax.constant_schedule(1e-2)
)


class FakeRun(NamedTuple):
    """What weights need to know of a run."""

    settings: Settings
    model: ModelSettings
    mesh: Mesh
    workdir: Path

    @property
    def cold_start(self):
        return self.workdir / "coldstart"


@pytest.fixture
def open_run(small_settings, tmp_path):
    """A run in a workdir of which the cold start trained all weights."""

    def make(*, seed=0, mesh=None, **changes):
        lora = LORA | {k: v for k, v in changes.items() if k in LORA}
        others = {k.replace("__", "."): v for k, v in changes.items() if k not in LORA}
        keys = {f"model.lora.{key}": value for key, value in lora.items()}
        settings = small_settings(keys | {"model.vocab": VOCAB} | others)
        run = FakeRun(settings, settings.model, mesh or make_mesh(jax.devices()[:1]), tmp_path)
        if not run.cold_start.exists() and not settings.model.folder:
            rng = np.random.default_rng(seed)
            shapes = jax.eval_shape(lambda: init_params(run.model, jax.random.key(0)))
            params = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)
            save(run, TrainState(params, {}, np.int32(7)), run.cold_start)
        return run

    return make


def save(run, state, folder=None):
    store = store_of(run, folder)
    store.save(int(state.step), state, {"note": 1})
    store.close()


def store_of(run, folder=None):
    return Checkpoints((folder or run.workdir) / "checkpoints", keep=1, lora=run.model.lora)


def updater_of(run, state):
    return Updater(
        imitation_loss(run.model),
        OPTIMIZER,
        state,
        mesh=run.mesh,
        rl=RlSettings(buckets=(SLOTS,), micro_tokens=8 * SLOTS),
    )


def started(run):
    return start_state(run, load_policy(run, run.cold_start), OPTIMIZER)


def updating(run):
    state = started(run)
    return updater_of(run, state), state


def steps(updater, state, count):
    for _ in range(count):
        state, metrics = updater.update(state, BATCH, np.full(16, SLOTS), None)
    return state, metrics


def same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_updates_move_adapters_alone_and_only_they_have_moments(open_run):
    run = open_run(model__dtype="bfloat16")
    state = started(run)
    before = jax.device_get(state.params)
    adapter_sizes = sum(leaf.size for leaf in jax.tree.leaves(before[ADAPTERS]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * adapter_sizes
    updater = updater_of(run, state)
    _, first = steps(updater, state, 1)
    state, last = steps(updater, started(run), 8)
    assert last["loss"] < first["loss"]
    same(jax.device_get(detach(state.params)), detach(before))
    for leaf, was in zip(
        jax.tree.leaves(state.params[ADAPTERS]), jax.tree.leaves(before[ADAPTERS]), strict=True
    ):
        assert leaf.dtype == np.float32 and (np.asarray(leaf) != was).all()


def test_going_on_from_a_checkpoint_of_adapters_is_going_on(open_run, tmp_path):
    run = open_run()
    whole, _ = steps(*updating(run), 4)
    half, _ = steps(*updating(run), 2)
    save(run, half)
    store = store_of(run)
    assert list(store.restore_params()) == [ADAPTERS]  # the base is not saved again
    state, metadata = store.restore(started(run))
    store.close()
    assert metadata == {"note": 1}
    same(jax.device_get(state), jax.device_get(half))
    state, _ = steps(updater_of(run, state), state, 2)
    same(jax.device_get(state), jax.device_get(whole))


def test_an_update_on_a_mesh_is_that_of_one_device(open_run):
    alone = open_run()
    spread = open_run(mesh=make_mesh(data=2, fsdp=2, tensor=2))
    found, wanted = (jax.device_get(steps(*updating(r), 2)[0]) for r in (spread, alone))
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, atol=5e-5)


def test_adapters_are_read_with_the_base_they_were_trained_on(open_run, small_settings):
    run = open_run()
    state, _ = steps(*updating(run), 1)
    save(run, state)
    wanted = jax.device_get(state.params)
    same(jax.device_get(load_policy(run, run.workdir)), wanted)
    weights = newest_weights(run.settings, run.workdir)
    assert weights.origin == run.workdir
    same(jax.device_get(weights.load(run.mesh, dtype="float32")), wanted)
    with pytest.raises(ValueError, match=r"lora\.rank=0: .*holds adapters of rank 3 for .*query"):
        load_policy(open_run(rank=0), run.workdir)
    with pytest.raises(ValueError, match=r"lora\.rank=2: .*holds adapters of rank 3"):
        newest_weights(open_run(rank=2).settings, run.workdir)
    base = store_of(run, run.cold_start)
    other = jax.tree.map(lambda x: x + np.float32(1e-6), base.restore_params())
    base.save(8, TrainState(other, {}, np.int32(8)), {})
    base.close()
    with pytest.raises(ValueError, match="were trained on other weights"):
        load_policy(run, run.workdir)
    store = store_of(run)
    with pytest.raises(ValueError, match="its adapters were trained on other weights"):
        store.restore(started(run))
    store.close()


def test_adapters_that_would_count_otherwise_than_in_training_are_refused(open_run):
    run = open_run()
    state, _ = steps(*updating(run), 1)
    save(run, state)
    other = open_run(alpha=12.0)
    alpha = r"model\.lora\.alpha=12\.0: the adapters in .* were trained with 6\.0; set it back"
    with pytest.raises(ValueError, match=alpha):  # evaluation, and the gates of a run
        load_policy(other, run.workdir)
    with pytest.raises(ValueError, match=alpha):  # score and export
        newest_weights(other.settings, run.workdir)
    for changed, told in (
        (other, alpha),
        (open_run(rank=2), r"model\.lora\.rank=2: .* were trained with 3; "),
        (open_run(targets=("q", "v")), r"model\.lora\.targets=\('q', 'v'\): .* with \['down'"),
    ):
        store = store_of(changed, run.workdir)
        with pytest.raises(ValueError, match=told):  # going on with the run
            store.restore(started(changed))
        store.close()
    same_kernels = open_run(targets=("down", "q", "v"), merge=True)
    same(jax.device_get(load_policy(same_kernels, run.workdir)), jax.device_get(state.params))


def test_adapters_without_their_base_are_refused(open_run):
    run = open_run()
    state, _ = steps(*updating(run), 1)
    save(run, state, run.workdir / "elsewhere")
    (run.cold_start).rename(run.workdir / "hidden")
    with pytest.raises(ValueError, match=r"adapters alone, .*cold start.* name it: sft\.folder"):
        load_policy(run, run.workdir / "elsewhere")


@pytest.mark.parametrize("variant", ["qwen2", "llama31"])
def test_a_trained_folder_is_exported_whole_and_scored_as_it_was_trained(
    variant, open_run, tmp_path
):
    folder = save_model(make_model(variant, vocab_size=VOCAB), tmp_path / "base")
    run = open_run(model__folder=str(folder))
    model = newest_weights(run.settings, tmp_path).model  # of config.json
    run = run._replace(model=model)
    state = fresh_state(run, OPTIMIZER)
    state, _ = steps(updater_of(run, state), state, 3)
    save(run, state)
    wanted = jax.jit(lambda p, x: unembed(model, p, forward(model, p, x)))(state.params, TOKENS)
    keys = {"folder": str(tmp_path / "made"), "dtype": "float32", "shard_gb": 1.0}
    settings = dataclasses.replace(
        run.settings, export=dataclasses.replace(run.settings.export, **keys)
    )
    export_weights(settings, run.workdir, devices=jax.devices()[:1])
    exported = load_model(tmp_path / "made")
    np.testing.assert_allclose(logits_of(exported, TOKENS), wanted, atol=1e-4)
    assert np.abs(logits_of(load_model(folder), TOKENS) - wanted).max() > 1e-2
    (tmp_path / "in.jsonl").write_text(json.dumps({"tokens": TOKENS[0].tolist()}) + "\n")
    paths = {"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl")}
    settings = dataclasses.replace(settings, score=dataclasses.replace(settings.score, **paths))
    score_file(settings, run.workdir, devices=jax.devices()[:1])
    found = json.loads((tmp_path / "out.jsonl").read_text())["logp"]
    logp = jax.nn.log_softmax(wanted[0])[np.arange(SLOTS - 1), TOKENS[0, 1:]]
    np.testing.assert_allclose(found, logp, atol=1e-5)


def test_the_start_up_log_counts_no_moments_of_a_frozen_base(open_run):
    full = open_run(rank=0, model__dtype="bfloat16").model
    adapted = open_run(model__dtype="bfloat16").model
    assert adapted.lora == LoraSettings(**LORA)
    mesh = make_mesh(jax.devices()[:1])
    base = sum(leaf.size for leaf in jax.tree.leaves(policy_shapes(full)))
    user_tools = sum(leaf.size for leaf in jax.tree.leaves(policy_shapes(adapted))) - base
    _, notes = describe(mesh, adapted, policy_shapes(adapted))
    bytes_held = float(notes[0].split("on each ")[1].split(" MB")[0]) * 1e6
    assert bytes_held == pytest.approx(2 * base + 12 * user_tools, rel=0.05)  # norms are float32
    assert "model.lora.rank=3" in notes[1]
