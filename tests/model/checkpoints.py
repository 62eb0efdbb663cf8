"""Random tiny checkpoints of each family, made by transformers' own classes, and their answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from rapo_jax.config import LoraSettings, ModelSettings
from rapo_jax.model.hf import check_tensors, load_params, places
from rapo_jax.model.hf_config import settings_from_hf
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.sharding import make_mesh, replicated

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10_000.0,
}
VARIANTS = {
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 1, "intermediate_size": 40, "rms_norm_eps": 1e-5}),
    "qwen2_head_dim": ("Qwen2", {"head_dim": 6, "rope_theta": 1e6}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_tied": ("Qwen3", {"head_dim": 4, "tie_word_embeddings": True, "num_hidden_layers": 3}),
    "llama3": ("Llama", {"num_key_value_heads": 4, "rope_theta": 500_000.0}),
    "llama31": ("Llama", {"rope_parameters": LLAMA3}),
    "llama32_tied": (
        "Llama",
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 12},
    ),
}
VOCAB = 97

BASE = ModelSettings(
    folder="",
    vocab=0,
    width=2,
    ffn=2,
    layers=1,
    heads=1,
    kv_heads=1,
    head_width=2,
    rope_theta=1.0,
    rope_type="default",
    rope_factor=8.0,
    rope_low_freq=1.0,
    rope_high_freq=4.0,
    rope_positions=16,
    norm_eps=1.0,
    qkv_bias=False,
    qk_norm=False,
    tied=False,
    init_scale=0.5,
    dtype="float32",
    layer_unroll=1,
    score_logits=2**26,
    remat="none",
    attention="auto",
    lora=LoraSettings(rank=0, alpha=1.0, targets=(), merge=False),
)
"""What no folder decides; every other value is one that no checkpoint here has."""


def make_model(variant, *, seed=0, std=0.1, **changes):
    """A torch model whose norms and biases are random too: fresh ones would hide their use."""
    family, own = VARIANTS[variant]
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": std,
    }
    config = getattr(transformers, f"{family}Config")(**sizes | own | changes)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.copy_(0.2 * torch.randn_like(value) + (not name.endswith("bias")))
    return model


def save_model(model, folder, *, dtype=torch.float32, shard="1GB"):
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return Path(folder)


def load_model(folder, dtype="auto"):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits_of(model, token_BT):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(token_BT))).logits.to(torch.float32).numpy()


def logp_and_entropy(logits_BTV, token_BT):
    """Of every token after the first, in float64."""
    logp_BTV = torch.log_softmax(torch.tensor(logits_BTV[:, :-1], dtype=torch.float64), dim=-1)
    taken_BT = torch.tensor(np.asarray(token_BT)[:, 1:, None]).long()
    logp_BT = logp_BTV.gather(-1, taken_BT)[..., 0]
    return logp_BT.numpy(), -(logp_BTV.exp() * logp_BTV).sum(-1).numpy()


def edit_config(folder, **changes):
    """Sets keys of config.json; None removes one."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def hub_style(folder):
    """Rewrites config.json with the keys that the hub's older files have."""
    config = json.loads((Path(folder) / "config.json").read_text())
    rope = config["rope_parameters"]
    theta = rope.pop("rope_theta")
    edit_config(
        folder,
        rope_parameters=None,
        rope_theta=theta,
        rope_scaling=None if rope["rope_type"] == "default" else rope,
        dtype=None,
        torch_dtype=config["dtype"],
        layer_types=None,
    )


def edit_tensors(folder, **changes):
    """Sets tensors of model.safetensors, `__` standing for a dot; None removes one."""
    path = Path(folder) / "model.safetensors"
    named = {name.replace("__", "."): value for name, value in changes.items()}
    tensors = load_file(path) | named
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {"format": "pt"})


def load(folder, dtype="float32"):
    """(settings, parameters) of a folder, checked, on one device."""
    settings = settings_from_hf(folder, base=dataclasses.replace(BASE, dtype=dtype))
    tensors = Tensors(folder)
    check_tensors(tensors, settings)
    mesh = make_mesh(jax.devices()[:1])
    shardings = jax.tree.map(lambda _: replicated(mesh), places(settings))
    params = load_params(tensors, settings, shardings=shardings, dtype=dtype)
    return dataclasses.replace(settings, folder=""), params
