"""config.json of the hub as settings: both styles, defaults, and what is refused by its key."""

from __future__ import annotations

import dataclasses
import json

import pytest
import transformers

from rapo_jax.model.hf_config import (
    FAMILIES,
    HfConfig,
    config_of,
    model_settings,
    refuse_contradictions,
    settings_from_hf,
)
from tests.model.checkpoints import BASE, LLAMA3

QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
LLAMA32_3B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 24,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN3_8B = QWEN25_7B | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}


@pytest.fixture
def folder_of(tmp_path):
    """Writes a config.json; None removes a key."""

    def write(config, **changes):
        config = {k: v for k, v in (config | changes).items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def test_the_published_configs_give_the_published_shapes(folder_of):
    s = settings_from_hf(folder_of(QWEN25_7B), base=BASE)
    assert (s.vocab, s.width, s.ffn, s.layers) == (152064, 3584, 18944, 28)
    assert (s.heads, s.kv_heads, s.head_width) == (28, 4, 128)
    assert (s.qkv_bias, s.qk_norm, s.tied) == (True, False, False)
    assert (s.rope_theta, s.rope_type, s.norm_eps) == (1e6, "default", 1e-6)
    s = settings_from_hf(folder_of(LLAMA32_3B), base=BASE)
    assert (s.qkv_bias, s.qk_norm, s.tied, s.head_width) == (False, False, True, 128)
    assert (s.rope_type, s.rope_theta, s.rope_factor) == ("llama3", 5e5, 32.0)
    assert (s.rope_low_freq, s.rope_high_freq, s.rope_positions) == (1.0, 4.0, 8192)
    s = settings_from_hf(folder_of(QWEN3_8B), base=BASE)
    assert (s.qkv_bias, s.qk_norm, s.heads * s.head_width, s.width) == (False, True, 4096, 4096)


def test_settings_that_a_folder_does_not_decide_stay_as_they_were(folder_of):
    base = dataclasses.replace(BASE, dtype="bfloat16", layer_unroll=3, score_logits=7)
    s = settings_from_hf(folder_of(QWEN25_7B), base=base)
    assert (s.dtype, s.layer_unroll, s.score_logits) == ("bfloat16", 3, 7)
    assert s.folder == str(folder_of(QWEN25_7B)) and model_settings(s) == s
    assert model_settings(base) == base  # no folder


@pytest.mark.parametrize("config", [QWEN25_7B, LLAMA32_3B, QWEN3_8B])
def test_a_config_saved_by_transformers_5_means_the_same_as_the_hubs(folder_of, config, tmp_path):
    hub = settings_from_hf(folder_of(config), base=BASE)
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved and "rope_theta" not in saved
    assert settings_from_hf(tmp_path, base=BASE) == hub
    assert HfConfig(tmp_path).stored_dtype == "bfloat16"


@pytest.mark.parametrize("kind", FAMILIES)
def test_missing_keys_have_the_defaults_of_transformers(folder_of, kind):
    sizes = {"vocab_size": 10, "hidden_size": 24, "intermediate_size": 5, "num_hidden_layers": 2}
    folder = folder_of({"model_type": kind, "num_attention_heads": 4, **sizes})
    s = settings_from_hf(folder, base=BASE)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert s.head_width == getattr(theirs, "head_dim", 6)
    assert (s.norm_eps, s.tied) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)
    assert s.rope_theta == theirs.rope_parameters["rope_theta"]
    assert theirs.max_position_embeddings == FAMILIES[kind].max_positions
    assert HfConfig(folder).stored_dtype is None


def test_a_top_level_original_context_has_priority_and_its_default_is_the_context(folder_of):
    scaling = LLAMA3 | {"original_max_position_embeddings": 16}
    del scaling["rope_theta"]
    folder = folder_of(
        LLAMA32_3B, rope_scaling=scaling, original_max_position_embeddings=32, rope_theta=None
    )
    assert settings_from_hf(folder, base=BASE).rope_positions == 32
    del scaling["original_max_position_embeddings"]
    s = settings_from_hf(folder_of(LLAMA32_3B, rope_scaling=scaling, rope_theta=None), base=BASE)
    assert (s.rope_positions, s.rope_theta) == (131072, 10_000.0)


REFUSED = [
    (QWEN25_7B, {"model_type": "gemma3"}, r"model_type='gemma3': .*qwen2, qwen3, llama are"),
    (QWEN25_7B, {"model_type": None}, r"model_type=None: this architecture is not supported"),
    (QWEN3_8B, {"model_type": "qwen3_moe"}, r"model_type='qwen3_moe': this architecture"),
    (
        LLAMA32_3B,
        {"architectures": ["LlamaForSequenceClassification"]},
        r"architectures=.*only LlamaForCausalLM is supported",
    ),
    (LLAMA32_3B, {"quantization_config": {"quant_method": "gptq"}}, r"quantization_config=.*gptq"),
    (QWEN25_7B, {"use_sliding_window": True, "sliding_window": 4096}, r"use_sliding_window=True"),
    (QWEN25_7B, {"use_sliding_window": True, "sliding_window": "8"}, r"sliding_window='8'"),
    (
        QWEN25_7B,
        {"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]},
        r"layer_types='sliding_attention': only full_attention",
    ),
    (QWEN3_8B, {"layer_types": ["linear_attention"]}, r"layer_types='linear_attention'"),
    (LLAMA32_3B, {"attention_bias": True}, r"attention_bias=True"),
    (QWEN3_8B, {"attention_bias": True}, r"attention_bias=True"),
    (LLAMA32_3B, {"mlp_bias": True}, r"mlp_bias=True"),
    (LLAMA32_3B, {"mlp_bias": "yes"}, r"mlp_bias='yes': expected true or false"),
    (LLAMA32_3B, {"hidden_act": "gelu"}, r"hidden_act='gelu': only silu"),
    (LLAMA32_3B, {"torch_dtype": "float8_e4m3fn"}, r"torch_dtype='float8_e4m3fn'"),
    (LLAMA32_3B, {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5: only 1.0"),
    (
        QWEN25_7B,
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        r"rope_scaling.rope_type='yarn'",
    ),
    (QWEN25_7B, {"rope_scaling": {"type": "linear", "factor": 4.0}}, r"rope_type='linear'"),
    (QWEN25_7B, {"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, r"rope_type='dynamic'"),
    (
        QWEN25_7B,
        {"rope_theta": None, "rope_parameters": {"rope_type": "longrope"}},
        r"rope_parameters.rope_type='longrope'",
    ),
    (
        QWEN25_7B,
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        r"rope_parameters=.*expected one group of keys for all layers",
    ),
    (LLAMA32_3B, {"rope_scaling": {"rope_type": "llama3"}}, r"key factor is missing"),
    (
        LLAMA32_3B,
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        r"high_freq_factor=1.0: must be more than low_freq_factor=1.0",
    ),
    (QWEN25_7B, {"vocab_size": None}, r"config\.json: key vocab_size is missing"),
    (QWEN25_7B, {"hidden_size": 3584.5}, r"hidden_size=3584.5: expected a whole number above 0"),
    (QWEN25_7B, {"num_hidden_layers": 0}, r"num_hidden_layers=0: expected a whole number"),
    (QWEN25_7B, {"num_hidden_layers": True}, r"num_hidden_layers=True: expected a whole number"),
    (QWEN25_7B, {"rms_norm_eps": "small"}, r"rms_norm_eps='small': expected a number above 0"),
    (QWEN25_7B, {"num_key_value_heads": 3}, r"num_key_value_heads=3: must divide 28 heads"),
    (QWEN25_7B, {"num_attention_heads": 24, "hidden_size": 100}, r"must divide hidden_size=100"),
    (QWEN3_8B, {"head_dim": 7}, r"head_dim=7: must be even"),
    # what a hostile or broken file may hold
    (QWEN25_7B, {"rope_theta": 0}, r"rope_theta=0: expected a number above 0"),
    (QWEN25_7B, {"rope_theta": float("inf")}, r"rope_theta=inf: expected a number above 0"),
    (QWEN25_7B, {"rope_theta": 1e39}, r"rope_theta=1e\+39: .* and below 3.4e\+38"),
    (QWEN25_7B, {"rope_theta": 1e-50}, r"rope_theta=1e-50: expected a number above 0"),
    (QWEN25_7B, {"rms_norm_eps": float("nan")}, r"rms_norm_eps=nan: expected a number above 0"),
    (QWEN25_7B, {"rms_norm_eps": 10**400}, r"rms_norm_eps=1000.*: expected a number above 0"),
    (QWEN25_7B, {"vocab_size": 10**30}, r"vocab_size=1000.*: .* and below 2147483648"),
    (QWEN25_7B, {"model_type": ["qwen2"]}, r"model_type=\['qwen2'\]: this architecture"),
    (QWEN25_7B, {"architectures": 3}, r"architectures=3: only Qwen2ForCausalLM"),
    (QWEN25_7B, {"layer_types": 3}, r"layer_types=3: expected a list"),
    (QWEN25_7B, {"rope_scaling": ["llama3"]}, r"rope_scaling=\['llama3'\]: expected one group"),
    (QWEN25_7B, {"tie_word_embeddings": 0}, r"tie_word_embeddings=0: expected true or false"),
]


@pytest.mark.parametrize(("config", "changes", "message"), REFUSED)
def test_a_config_that_cannot_be_computed_exactly_is_refused_by_its_key(
    folder_of, config, changes, message
):
    with pytest.raises(ValueError, match=message) as caught:
        settings_from_hf(folder_of(config, **changes), base=BASE)
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (QWEN25_7B, {"use_sliding_window": True}),  # a window of more than the context
        (QWEN25_7B, {"sliding_window": 512}),  # switched off
        (LLAMA32_3B, {"sliding_window": 512}),  # no key of this family
        (LLAMA32_3B, {"hidden_act": "swish", "architectures": None}),
        (LLAMA32_3B, {"partial_rotary_factor": 1.0}),
    ],
)
def test_keys_without_an_effect_are_accepted(folder_of, config, changes):
    wanted = settings_from_hf(folder_of(config), base=BASE)
    assert settings_from_hf(folder_of(config, **changes), base=BASE) == wanted


def test_a_folder_without_config_and_one_that_is_no_json_are_refused(tmp_path):
    missing = r"model\.folder=.*there is no config\.json of a model in /"
    with pytest.raises(ValueError, match=missing):
        settings_from_hf(tmp_path, base=BASE)
    (tmp_path / "config.json").write_text('{"stages": ["rl"], "method": "rapo"}')  # a workdir's
    with pytest.raises(ValueError, match=missing):
        settings_from_hf(tmp_path, base=BASE)
    deep = "[" * 100_000 + "]" * 100_000
    odd = (("{", "not JSON"), ("\xff", "not JSON"), (deep, "not JSON"), ("[]", "expected an obj"))
    for content, message in odd:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=rf"config\.json: {message}"):
            settings_from_hf(tmp_path, base=BASE)


def test_a_value_of_the_command_line_must_equal_the_folders(folder_of):
    folder = str(folder_of(QWEN25_7B))
    base = dataclasses.replace(BASE, folder=folder, layers=28, width=64)
    refuse_contradictions(base, ["model.layers", "model.folder", "model.vocab", "rl.width"])
    with pytest.raises(ValueError, match=r"model\.width=64: .* has 3584 \(hidden_size in its conf"):
        refuse_contradictions(base, ["model.layers", "model.width"])
    refuse_contradictions(dataclasses.replace(base, folder=""), ["model.width"])


@pytest.mark.parametrize("config", [QWEN25_7B, LLAMA32_3B, QWEN3_8B])
def test_settings_written_as_config_mean_the_same_here_and_in_transformers(folder_of, config):
    s = settings_from_hf(folder_of(config), base=BASE)
    folder = folder_of(config_of(s, max_positions=4096))
    assert settings_from_hf(folder, base=BASE) == s
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert theirs.architectures == config["architectures"]
    assert theirs.head_dim == s.head_width
    assert theirs.rope_parameters["rope_type"] == s.rope_type
    assert theirs.max_position_embeddings == (262144 if s.rope_type == "llama3" else 4096)


def test_settings_of_no_known_family_have_no_config():
    both = dataclasses.replace(BASE, qkv_bias=True, qk_norm=True)
    with pytest.raises(ValueError, match=r"model\.qk_norm=True: no architecture of Hugging Face"):
        config_of(both, max_positions=16)
