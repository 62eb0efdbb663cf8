"""Stage export: a folder that transformers loads, from a folder, a cold start or a run."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import optax
import pytest
import torch
import transformers

from rapo_jax.model.transformer import forward, init_params, unembed
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.stages.export import export_weights
from rapo_jax.text.tokens import build_tokenizer, load_tokens
from rapo_jax.types import TrainState
from tests.model.checkpoints import (
    VOCAB,
    hub_style,
    load_model,
    logits_of,
    make_model,
    save_model,
)
from tests.text.test_chat import PUBLISHED, make

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 20), np.int32)


@pytest.fixture
def export(small_settings, tmp_path):
    """Exports into a new folder; returns it."""

    def run(workdir=tmp_path / "work", **changes):
        keys = {"export.folder": str(tmp_path / "made")}
        keys |= {key.replace("__", "."): value for key, value in changes.items()}
        export_weights(small_settings(keys), workdir, devices=jax.devices()[:1])
        return tmp_path / "made"

    return run


@pytest.mark.parametrize("variant", ["qwen2_tied", "llama31"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_folder_comes_out_as_it_went_in(variant, dtype, export, tmp_path):
    source = tmp_path / "source"
    save_model(make_model(variant), source, dtype=getattr(torch, dtype))
    if variant == "llama31":
        hub_style(source)
    (source / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    made = export(model__folder=str(source))
    before, after = load_model(source), load_model(made)
    assert after.dtype == before.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(logits_of(after, TOKENS), logits_of(before, TOKENS))
    assert json.loads((made / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    assert json.loads((made / "generation_config.json").read_text()) == {"eos_token_id": [3, 4]}


def test_without_a_dtype_in_config_json_that_of_the_tensors_is_kept(export, tmp_path):
    source = tmp_path / "source"
    save_model(make_model("qwen3"), source, dtype=torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    made = export(model__folder=str(source))
    assert json.loads((made / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(made).dtype == torch.bfloat16


def test_another_dtype_and_several_files_can_be_asked_for(export, tmp_path):
    source = save_model(make_model("qwen2"), tmp_path / "source")
    made = export(model__folder=str(source), export__dtype="bfloat16", export__shard_gb=1e-5)
    assert len(list(made.glob("model-*-of-*.safetensors"))) > 2
    whole = load_model(source, dtype=torch.bfloat16)
    found = load_model(made)
    assert found.dtype == torch.bfloat16
    np.testing.assert_array_equal(logits_of(found, TOKENS), logits_of(whole, TOKENS))


def random_params(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), shapes)


@pytest.mark.parametrize(
    "changes",
    [
        {},  # as Qwen2
        {"model.qkv_bias": False, "model.qk_norm": True, "model.tied": True},  # as Qwen3
        {"model.qkv_bias": False, "model.rope_type": "llama3", "model.rope_positions": 8},
    ],
)
def test_the_newest_checkpoint_of_a_workdir_loads_in_transformers_with_its_tokenizer(
    changes, export, small_settings, tmp_path, capsys
):
    workdir = tmp_path / "work"
    build_tokenizer(workdir / "coldstart" / "tokenizer", ["a b a b"], vocab_size=300)
    tokens = load_tokens(workdir / "coldstart" / "tokenizer")
    model = small_settings(changes | {"model.vocab": len(tokens.bytes_V)}).model
    params = random_params(model)
    older = jax.tree.map(np.zeros_like, params)
    for folder, step, saved in (("coldstart", 9, older), ("", 1, older), ("", 2, params)):
        store = Checkpoints(workdir / folder / "checkpoints", keep=2)
        state = TrainState(saved, optax.sgd(1.0).init(saved), np.int32(step))
        store.save(step, state, {})
        store.close()
    made = export(**{key.replace(".", "__"): value for key, value in changes.items()})

    def logits(params, token_BT):
        return unembed(model, params, forward(model, params, token_BT))

    want_BTV = np.asarray(jax.jit(logits)(params, TOKENS))
    found = load_model(made)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(logits_of(found, TOKENS), want_BTV, atol=1e-4)
    # AutoTokenizer would rebuild that of a qwen2 folder with Qwen's own rules, whatever it says.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(made)
    assert tokenizer.encode("a b") == tokens.encode("a b")
    assert tokenizer.chat_template == tokens.tokenizer.chat_template
    assert found.generation_config.eos_token_id == list(tokens.eos_ids)
    again = load_tokens(made)
    assert (again.fingerprint, again.bytes_V) == (tokens.fingerprint, tokens.bytes_V)
    assert ("PreTrainedTokenizerFast" in capsys.readouterr().out) == (changes == {})


def test_named_chat_templates_are_exported_too(export, tmp_path):
    source = save_model(make_model("qwen3"), tmp_path / "source")
    make(source, *PUBLISHED["qwen2.5"])
    named = source / "additional_chat_templates"
    named.mkdir()
    (named / "tool_use.jinja").write_text("tools")
    made = export(model__folder=str(source))
    assert (made / named.name / "tool_use.jinja").read_text() == "tools"


def test_an_export_that_was_killed_does_not_stand_in_the_way_of_the_next(export, tmp_path):
    source = save_model(make_model("qwen3"), tmp_path / "source")
    (tmp_path / "made.tmp").mkdir()
    (tmp_path / "made.tmp" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    made = export(model__folder=str(source))
    assert sorted(path.name for path in made.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    assert not (tmp_path / "made.tmp").exists()
    before = {path: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(ValueError, match=r"export\.folder=.*name a folder that does not exist yet"):
        export(model__folder=str(source))
    assert {path: path.read_bytes() for path in made.iterdir()} == before
    shutil.rmtree(made)
    made.mkdir()  # empty ones are as good as none
    assert (export(model__folder=str(source)) / "config.json").is_file()


def test_what_is_missing_is_refused_by_its_key(export, tmp_path):
    with pytest.raises(ValueError, match=r"export\.folder='': name a folder"):
        export(export__folder="")
    with pytest.raises(ValueError, match=r"model\.folder='': there are no weights"):
        export()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, {"eos_token_id": 0, "top_p": 0.8}])
def test_an_export_stops_wherever_the_run_stops(given, export, tmp_path):
    """transformers reads the generation config, and without one config.json."""
    source = tmp_path / "source"
    save_model(make_model("qwen2", vocab_size=320), source)
    build_tokenizer(source, ["a b a b"], vocab_size=300)
    (source / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((source / "config.json").read_text()) | {"eos_token_id": 7}
    (source / "config.json").write_text(json.dumps(config))
    if given:
        (source / "generation_config.json").write_text(json.dumps(given))
    tokens = load_tokens(source)
    assert len(tokens.eos_ids) == 2
    made = export(model__folder=str(source))
    assert set(load_tokens(made).eos_ids) == set(tokens.eos_ids)
    found = transformers.GenerationConfig.from_pretrained(made)
    assert found.eos_token_id == list(tokens.eos_ids)
    assert found.top_p == (0.8 if given else None) and found.pad_token_id == tokens.pad_id
    assert transformers.AutoConfig.from_pretrained(made).eos_token_id == list(tokens.eos_ids)
    assert load_model(made).generation_config.eos_token_id == list(tokens.eos_ids)
