"""A run that starts from a Hugging Face folder: its shape, its tokenizer, its weights."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from rapo_jax.model.transformer import forward, unembed
from rapo_jax.run.policy import fresh_state, load_policy
from rapo_jax.run.run import open_run
from rapo_jax.run.weights import restore
from rapo_jax.stages.job import summarise
from rapo_jax.stages.table import JOB_STAGES, Job
from rapo_jax.text.tokens import build_tokenizer
from tests.model.checkpoints import logits_of, make_model, save_model

VOCAB = 320
"""Of the model: more than its tokenizer has, as in published ones."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    save_model(make_model("qwen3", vocab_size=VOCAB), path)
    build_tokenizer(path, ["Who knows?"], vocab_size=300)
    return path


@pytest.fixture
def opened(folder, small_settings, tmp_path):
    """Opens a run from the folder, with changes by dotted key."""
    runs = []

    def make(changes):
        settings = small_settings(
            {"model.folder": str(folder), "rollout.driver": "host", "rollout.prompt_tokens": 60,
             "rollout.max_tokens": 130, "rl.buckets": (130,), "evaluate.limit": 2}
            | changes
        )  # fmt: skip
        runs.append(open_run(settings, tmp_path, devices=jax.devices()[:1]))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def test_a_run_from_a_folder_has_its_shape_tokenizer_and_weights(opened, folder):
    run = opened({})
    assert (run.model.vocab, run.model.width, run.model.layers) == (VOCAB, 32, 2)
    assert len(run.tokens.bytes_V) == VOCAB and run.tokens.bytes_V[-1] == b""
    assert not (run.cold_start / "tokenizer").exists()
    state = fresh_state(run, optax.sgd(1.0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert int(state.step) == 0
    start = load_policy(run, run.cold_start)  # no cold start was trained: the folder is it
    jax.tree.map(np.testing.assert_array_equal, start, state.params)
    token_BT = np.arange(12).reshape(2, 6)
    theirs = logits_of(make_model("qwen3", vocab_size=VOCAB), token_BT)
    mine = jax.jit(lambda p, x: unembed(run.model, p, forward(run.model, p, x)))(start, token_BT)
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    with pytest.raises(ValueError, match="no checkpoint there; run the stage 'rl' first"):
        load_policy(run, run.workdir)
    assert restore(run.workdir) is None


def test_a_folder_can_be_evaluated_before_anything_is_trained(opened, capsys):
    run = opened({})
    job = Job(run)
    JOB_STAGES["evaluate"](job)
    assert 0 <= job.result["accuracy_before"] <= 1 and "accuracy_after" not in job.result
    summarise(run.workdir, job.result, suites=False, seconds=1.0)
    trained = job.result | {"accuracy_after": 1.0, "method": "grpo"}
    summarise(run.workdir, trained, suites=False, seconds=1.0)
    assert " before training -> 1.000 after grpo" in capsys.readouterr().out


def test_a_folder_without_tokenizer_and_a_tokenizer_too_large_are_refused(
    opened, folder, tmp_path_factory
):
    bare = tmp_path_factory.mktemp("bare")
    save_model(make_model("qwen3"), bare)  # 97 tokens, fewer than the tokenizer has
    with pytest.raises(ValueError, match=r"tokenizer\.folder=.*there is no tokenizer\.json"):
        opened({"model.folder": str(bare)})
    with pytest.raises(ValueError, match=r"tokenizer\.folder=.*ids go up to 2\d\d.*vocab_size=97"):
        opened({"model.folder": str(bare), "tokenizer.folder": str(folder)})
