"""The buffer stage: who fills it, what it refuses, and an encoder that runs inside the rollout."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from rapo_jax.distributed import Stopped
from rapo_jax.run.policy import load_policy
from rapo_jax.sampling.encoders import device_encoder
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.sampling.tapes import segments
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.stages import buffer, buffer_sources
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.protocol import render_retrieved
from rapo_jax.train.buffer import (
    ENCODE_ROWS,
    attach_buffer,
    each_text_once,
    load_buffer,
    read_trajectories,
    text_encoder,
)
from rapo_jax.types import Source


def test_the_scripted_expert_fills_the_buffer_with_its_best_trajectories(trunk):
    manifest = load_buffer(trunk).manifest
    assert manifest["questions"] == manifest["trajectories_kept"] == 20  # keep = 1 a question
    assert manifest["trajectories_sampled"] == 40
    assert manifest["mean_reward_kept"] >= manifest["mean_reward_sampled"]
    assert manifest["traces_by_origin"] == {"scripted": manifest["traces"]}
    traces = read_trajectories(trunk)
    assert len(traces) == 20
    assert sum(len(trace.steps) for trace in traces) == manifest["traces"]
    asked = {question.id for question in load_questions(trunk.questions["expert"])}
    assert {trace.question_id for trace in traces} <= asked


def test_wrong_trajectories_can_be_left_out_of_the_buffer_and_not_all(branch, tmp_path, trunk):
    expert = {"buffer.expert_error": 0.9, "buffer.keep": 2}
    all_kept = build_buffer(branch(expert | {"buffer.folder": str(tmp_path / "all")}, name="all"))
    run = branch(
        expert | {"buffer.folder": str(tmp_path / "right"), "buffer.least_reward": 0.5},
        name="right",
    )
    manifest = build_buffer(run)
    assert 0 < manifest["trajectories_kept"] < all_kept["trajectories_kept"] == 40
    assert all(trace.reward >= 0.5 for trace in read_trajectories(run))
    assert all(trace.reward >= 0.5 for trace in load_buffer(run).step_traces)
    none = {"buffer.folder": str(tmp_path / "none"), "buffer.least_reward": 9.0}
    with pytest.raises(ValueError, match="buffer.least_reward=9: none of 40 trajectories"):
        build_buffer(branch(none, name="none"))


def test_a_finished_buffer_is_kept(trunk, capsys):
    before = load_buffer(trunk).identity
    assert build_buffer(trunk)["identity"] == before
    assert capsys.readouterr().out == ""


def test_a_run_is_told_how_the_buffer_that_it_shares_was_filled_otherwise(branch, trunk, capsys):
    shared = {"buffer.folder": str(trunk.buffer), "buffer.keep": 2, "buffer.expert_error": 0.5}
    assert load_buffer(branch(shared)).identity == load_buffer(trunk).identity
    was = trunk.settings.buffer
    assert capsys.readouterr().out == (
        f"[buffer] {trunk.buffer} was filled with buffer.keep={was.keep} (here 2), "
        f"buffer.expert_error={was.expert_error} (here 0.5)\n"
    )


def test_a_buffer_that_is_not_there_is_named_by_its_key(branch, tmp_path):
    with pytest.raises(ValueError, match="^buffer.folder=.*no such folder; run the stage 'buffer'"):
        load_buffer(branch({"buffer.folder": str(tmp_path / "none")}))


def test_any_checkpoint_of_a_policy_can_fill_the_buffer(branch, tmp_path, trunk):
    changes = {
        "buffer.folder": str(tmp_path / "buffer"),
        "buffer.agent": "checkpoint",
        "buffer.checkpoint": str(trunk.cold_start),
        "buffer.questions": 3,  # two at a time: the last batch is padded
        "buffer.samples": 4,
        "buffer.keep": 2,
    }
    run = branch(changes)
    manifest = build_buffer(run)
    assert manifest["trajectories_sampled"] == 3 * 4
    assert manifest["trajectories_kept"] == 3 * 2
    (origin,) = manifest["traces_by_origin"]
    assert origin == f"checkpoint:{trunk.cold_start}"
    assert not any("<retrieve>" in item.value for item in load_buffer(run).step_traces)
    attach_buffer(run)
    attach_buffer(trunk)


def test_a_buffer_of_another_tokenizer_is_refused(branch):
    run = branch()
    other = dataclasses.replace(run, tokens=dataclasses.replace(run.tokens, fingerprint="0" * 64))
    with pytest.raises(ValueError, match="tokenizer='.*but this run has '0000"):
        load_buffer(other)


def test_a_buffer_of_another_encoder_is_refused(branch, trunk, tmp_path, bert_folder):
    changes = {"retrieval.encoder": "minilm", "retrieval.encoder_folder": str(bert_folder)}
    run = branch(changes | {"retrieval.encoder_tokens": 16})
    run = dataclasses.replace(run, encoder=device_encoder(run.settings.retrieval))
    with pytest.raises(ValueError, match="encoder='ngram:.*has 'minilm:[0-9a-f]{32}:16'"):
        load_buffer(run)


def test_an_encoder_is_known_by_its_files_and_not_by_its_folder(trunk, tmp_path, bert_folder):
    def identity(folder):
        changes = {"encoder": "minilm", "encoder_folder": str(folder)}
        return device_encoder(dataclasses.replace(trunk.settings.retrieval, **changes)).identity

    renamed = shutil.copytree(bert_folder, tmp_path / "renamed")
    other = shutil.copytree(bert_folder, tmp_path / "other" / bert_folder.name)
    file = other / "model.safetensors"
    save_file({name: x + 1 for name, x in load_file(file).items()}, file)
    assert identity(renamed) == identity(bert_folder) != identity(other)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory, trunk):
    """A random BERT of one layer that knows the words of the task, in the publisher's files."""
    folder = tmp_path_factory.mktemp("encoders") / "bert"
    folder.mkdir()
    words = ["[UNK]", *sorted({w for text in trunk.task.corpus(trunk.world) for w in text.split()})]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    D, F = 8, 12
    config = {
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": D, "intermediate_size": F,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "num_attention_heads": 2,
        "num_hidden_layers": 1, "type_vocab_size": 2, "vocab_size": len(words),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    layer = "encoder.layer.0"
    shapes = {f"{layer}.attention.self.{name}": (D, D) for name in ("query", "key", "value")}
    shapes |= {f"{layer}.attention.output.dense": (D, D)}
    shapes |= {f"{layer}.intermediate.dense": (F, D), f"{layer}.output.dense": (D, F)}
    norms = ("embeddings.LayerNorm", f"{layer}.attention.output.LayerNorm",
             f"{layer}.output.LayerNorm")  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {f"{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": rng.standard_normal(shape[0]) for name, shape in shapes.items()}
    tensors |= {f"{name}.{leaf}": np.full(D, leaf == "weight") for name in norms
                for leaf in ("weight", "bias")}  # fmt: skip
    for name, count in (("word", len(words)), ("position", 64), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = rng.standard_normal((count, D))
    floats = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    save_file(floats, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("asked_at", "said"), [(1, "scripted agent"), (2, "the 0 keys made so far")]
)
def test_a_signal_ends_the_making_of_a_buffer(branch, tmp_path, monkeypatch, asked_at, said):
    """The agent's 20 questions are one part, and so are the keys: the second look is theirs."""
    looks = []

    def stop_requested():
        looks.append(1)
        return len(looks) >= asked_at

    monkeypatch.setattr(buffer_sources, "stop_requested", stop_requested)
    monkeypatch.setattr(buffer, "stop_requested", stop_requested)
    run = branch({"buffer.folder": str(tmp_path / "b")})
    with pytest.raises(Stopped, match=said):
        build_buffer(run)
    assert not (tmp_path / "b" / "done.json").exists()
    monkeypatch.undo()
    assert build_buffer(run)["trajectories_sampled"] == 40


def test_equal_keys_are_embedded_once_and_each_has_that_of_its_own_text(trunk, bert_folder):
    changes = {"encoder": "minilm", "encoder_folder": str(bert_folder), "encoder_tokens": 24}
    encoder = device_encoder(dataclasses.replace(trunk.settings.retrieval, **changes))
    read = []

    def tokenize(texts):
        read.extend(text for text in texts if text)
        return encoder.tokenize(texts)

    words = sorted({w for text in trunk.task.corpus(trunk.world) for w in text.split()})
    distinct = [f"{words[n % 7]} {words[n]}" for n in range(ENCODE_ROWS + 3)]
    texts = [*distinct, *reversed(distinct), distinct[5]]
    key_ME = each_text_once(text_encoder(encoder._replace(tokenize=tokenize)))(texts)
    one_by_one = encoder.embed(encoder.tokenize(texts))
    np.testing.assert_allclose(key_ME, one_by_one, atol=1e-6)
    assert read == distinct


def test_a_sentence_encoder_embeds_on_the_device_inside_the_rollout(branch, tmp_path, bert_folder):
    changes = {
        "retrieval.encoder": "minilm",
        "retrieval.encoder_folder": str(bert_folder),
        "retrieval.encoder_tokens": 24,
        "retrieval.history": "full",
        "buffer.folder": str(tmp_path / "buffer"),
    }
    run = branch(changes)
    encoder = device_encoder(run.settings.retrieval)
    sampler = Sampler(
        run.model,
        run.settings.rollout,
        run.tokens,
        run.environment,
        run.mesh,
        system=run.task.system_prompt,
        embed=encoder.embed,
        query_shape=encoder.query_shape,
    )
    run = dataclasses.replace(run, encoder=encoder, sampler=sampler)
    manifest = build_buffer(run)
    assert manifest["encoder"] == encoder.identity
    buffer = attach_buffer(run)
    assert buffer.key_ME.shape == (manifest["traces"], 8)

    questions = load_questions(run.questions["train"])[:2]
    trajectory = sampler.sample(
        sampler.load(load_policy(run, run.cold_start)),
        jax.random.key(0),
        questions,
        group_size=4,
        n_hybrid=4,
        temperature=1.0,
        probability=1.0,
    )
    counts = run.environment.take_counts()
    assert counts["buffer/hits"] == counts["buffer/queries"] > 2
    assert counts["buffer/similarity_sum"] <= counts["buffer/hits"] * (1 + 1e-5)
    values = {render_retrieved(item.value) for item in buffer.step_traces}
    found = [
        segment.text
        for b in range(8)
        for segment in segments(run.tokens, trajectory, b)
        if segment.source == Source.RETRIEVED
    ]
    assert found and set(found) <= values | {text for text in found if len(text) > 60}


def test_the_built_in_encoder_is_saved_with_the_buffer_and_passes_through_the_device(trunk):
    encoder = NgramEncoder.load(trunk.buffer / "encoder")
    assert load_buffer(trunk).manifest["encoder"] == encoder.identity
    key_BE = encoder(["who is the x of y ?", ""])
    np.testing.assert_array_equal(trunk.encoder.embed(key_BE), key_BE)
    assert trunk.encoder.query_shape.shape == key_BE.shape[1:]
