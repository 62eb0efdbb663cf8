"""Reads a Hugging Face config.json as model settings, and writes one: Qwen2/2.5, Qwen3, Llama 3.

A missing key has the default of `transformers`. Anything that the decoder cannot compute exactly as
`transformers` does is refused, naming the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rapo_jax.config import ModelSettings
from rapo_jax.io.files import read_object

Config: TypeAlias = dict[str, Any]
"""The keys of a config.json."""


class Family(NamedTuple):
    """Properties of a `model_type` that its config.json need not name."""

    architecture: str
    qkv_bias: bool
    qk_norm: bool
    head_dim: int | None
    """Default of head_dim; None is hidden_size / num_attention_heads."""
    max_positions: int
    """Default of max_position_embeddings."""


FAMILIES = {
    "qwen2": Family("Qwen2ForCausalLM", True, False, None, 32_768),
    "qwen3": Family("Qwen3ForCausalLM", False, True, 128, 32_768),
    "llama": Family("LlamaForCausalLM", False, False, None, 2048),
}
KEYS = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "rope_theta": "rope_theta",
    "rope_type": "rope_type",
    "rope_factor": "factor",
    "rope_low_freq": "low_freq_factor",
    "rope_high_freq": "high_freq_factor",
    "rope_positions": "original_max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "qkv_bias": "model_type",
    "qk_norm": "model_type",
    "tied": "tie_word_embeddings",
}
"""Model setting -> the key of config.json that decides it."""
STORED_DTYPES = ("float32", "bfloat16", "float16")
FLOAT_RANGE = (2.0**-126, 3.4e38)
"""The positive numbers that float32 holds."""
SHOWN = 200
"""Characters of a value in an error."""


class HfConfig:
    """A folder's config.json; its keys are checked when they are read."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "config.json"
        self.values: Config = read_object(self.path) if self.path.is_file() else {}
        if not self.values or "stages" in self.values:  # the latter is a run's
            raise ValueError(
                f"model.folder={str(folder)!r}: there is no config.json of a model in "
                f"{Path(folder).absolute()}; give a Hugging Face folder (a run's stage 'export' "
                "writes one)"
            )

    def refuse(self, key: str, value: object, remedy: str) -> ValueError:
        return ValueError(f"{self.path}: {key}={repr(value)[:SHOWN]}: {remedy}")

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        group: Config | None = None,
        whole: bool = False,
    ) -> float:
        """A positive number of float32, or of int32, of the config or of a group of its keys."""
        value = (self.values if group is None else group).get(key)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"{self.path}: key {key} is missing")
        kinds, low, high = (int, 1, 2**31) if whole else ((int, float), *FLOAT_RANGE)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value < high:
            kind = "whole number" if whole else "number"
            raise self.refuse(key, value, f"expected a {kind} above 0 and below {high:.10g}")
        return value if whole else float(value)

    def count(self, key: str, default: int | None = None, *, group: Config | None = None) -> int:
        return int(self.number(key, default, group=group, whole=True))

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, value, "expected true or false")
        return bool(value)

    @property
    def family(self) -> Family:
        kind = self.values.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise self.refuse(
                "model_type", kind, f"this architecture is not supported; {', '.join(FAMILIES)} are"
            )
        family = FAMILIES[kind]
        named = self.values.get("architectures")
        if named and (not isinstance(named, list) or family.architecture not in named):
            raise self.refuse("architectures", named, f"only {family.architecture} is supported")
        return family

    @property
    def stored_dtype(self) -> str | None:
        """The dtype of the folder's tensors; None if config.json does not name it."""
        value = self.values.get("dtype") or self.values.get("torch_dtype")
        name = str(value).removeprefix("torch.")
        if value is not None and name not in STORED_DTYPES:
            raise self.refuse("torch_dtype", value, f"expected one of {', '.join(STORED_DTYPES)}")
        return None if value is None else name


def model_settings(base: ModelSettings) -> ModelSettings:
    """The settings of a run's model: `settings_from_hf` if it has a folder, else `base`."""
    return settings_from_hf(base.folder, base=base) if base.folder else base


def settings_from_hf(folder: str | Path, *, base: ModelSettings) -> ModelSettings:
    """Model settings of a folder's config.json; the rest (see KEYS) is taken from `base`.

    Raises:
        ValueError: names the key of config.json that is missing or not supported.
    """
    config = HfConfig(folder)
    family = config.family
    _refuse_unsupported(config, family)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.refuse("num_key_value_heads", kv_heads, f"must divide {heads} heads")
    if family.head_dim is None and config.values.get("head_dim") is None and width % heads:
        raise config.refuse("num_attention_heads", heads, f"must divide hidden_size={width}")
    head_width = config.count("head_dim", family.head_dim or width // heads)
    if head_width % 2:
        raise config.refuse("head_dim", head_width, "must be even")
    return dataclasses.replace(
        _with_rope(base, config, family),
        folder=str(folder),
        vocab=config.count("vocab_size"),
        width=width,
        ffn=config.count("intermediate_size"),
        layers=config.count("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied=config.flag("tie_word_embeddings"),
    )


def _refuse_unsupported(config: HfConfig, family: Family) -> None:
    values = config.values
    if values.get("quantization_config") is not None:
        raise config.refuse(
            "quantization_config",
            values["quantization_config"],
            "quantised weights are not supported; use the original ones",
        )
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise config.refuse("hidden_act", values["hidden_act"], "only silu is supported")
    # Qwen2 ignores this key; in the other families it would add a bias to the output too.
    if config.flag("attention_bias") and not family.qkv_bias:
        raise config.refuse("attention_bias", True, "only models without it are supported")
    if config.flag("mlp_bias"):
        raise config.refuse("mlp_bias", True, "only models without it are supported")
    if family.architecture != "LlamaForCausalLM":
        _refuse_windows(config, family)
    _ = config.stored_dtype  # raises if it is not supported


def _refuse_windows(config: HfConfig, family: Family) -> None:
    """Refuses a window that could hide a token: engines disagree on which layers have it."""
    positions = config.count("max_position_embeddings", family.max_positions)
    harmless = ["full_attention"]
    if config.values.get("sliding_window", 4096) is not None:
        window = config.count("sliding_window", 4096)
        if window >= positions:
            harmless.append("sliding_attention")
        elif config.flag("use_sliding_window"):
            raise config.refuse(
                "use_sliding_window",
                True,
                f"sliding_window={window} is less than max_position_embeddings={positions}; such "
                "windows are not supported",
            )
    kinds = config.values.get("layer_types") or []
    if not isinstance(kinds, list):
        raise config.refuse("layer_types", kinds, "expected a list")
    for kind in kinds:
        if kind not in harmless:
            raise config.refuse("layer_types", kind, f"only {harmless[0]} is supported")


def _with_rope(base: ModelSettings, config: HfConfig, family: Family) -> ModelSettings:
    """Sets RoPE by `rope_parameters` (new files) or `rope_theta` and `rope_scaling` (the hub's)."""
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    rope = config.values.get(key) or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise config.refuse(key, rope, "expected one group of keys for all layers")
    theta = config.number("rope_theta", config.number("rope_theta", 10_000.0), group=rope)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    for group in (rope, config.values):
        if group.get("partial_rotary_factor") not in (None, 1.0):
            raise config.refuse(
                "partial_rotary_factor", group["partial_rotary_factor"], "only 1.0 is supported"
            )
    if kind == "default":
        return dataclasses.replace(base, rope_type=kind, rope_theta=theta)
    if kind != "llama3":
        raise config.refuse(f"{key}.rope_type", kind, "only default and llama3 are supported")
    original = "original_max_position_embeddings"  # outside the group it has priority
    positions = config.count("max_position_embeddings", family.max_positions)
    positions = config.count(original, config.count(original, positions, group=rope))
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (config.number(name, group=rope) for name in names)
    if high <= low:
        raise config.refuse("high_freq_factor", high, f"must be more than low_freq_factor={low}")
    return dataclasses.replace(
        base,
        rope_type=kind,
        rope_theta=theta,
        rope_factor=factor,
        rope_low_freq=low,
        rope_high_freq=high,
        rope_positions=positions,
    )


def refuse_contradictions(base: ModelSettings, given: Collection[str]) -> None:
    """Refuses values of config.model that differ from the folder's, among the dotted keys `given`.

    `given` are the keys of the command line: a config file may have the shape of a smaller model.

    Raises:
        ValueError: names the key, its value and that of the folder's config.json.
    """
    folder_settings = model_settings(base)
    for name, hf_key in KEYS.items():
        value, wanted = getattr(base, name), getattr(folder_settings, name)
        if f"model.{name}" in given and value != wanted and (name, value) != ("vocab", 0):
            raise ValueError(
                f"model.{name}={value!r}: model.folder={base.folder!r} has {wanted!r} ({hf_key} "
                f"in its config.json); leave model.{name} out"
            )


def config_of(settings: ModelSettings, *, max_positions: int) -> Config:
    """A config.json for weights without a folder, with keys that every transformers version reads.

    Raises:
        ValueError: no architecture of Hugging Face has these settings.
    """
    s = settings
    if s.qkv_bias and s.qk_norm:
        raise ValueError(
            "model.qk_norm=True: no architecture of Hugging Face has it together with "
            "model.qkv_bias=True; such a model cannot be exported"
        )
    kind = "qwen2" if s.qkv_bias else "qwen3" if s.qk_norm else "llama"

    def named(*settings: str) -> Config:
        return {KEYS[name]: getattr(s, name) for name in settings}

    scaling = None
    if s.rope_type == "llama3":
        names = ("rope_type", "rope_factor", "rope_low_freq", "rope_high_freq", "rope_positions")
        scaling = named(*names)
        max_positions = max(max_positions, int(s.rope_factor * s.rope_positions))
    return {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        **named("vocab", "width", "ffn", "layers", "heads", "kv_heads", "head_width"),
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "initializer_range": s.init_scale,
        **named("norm_eps", "rope_theta", "tied"),
        "rope_scaling": scaling,
        "use_cache": True,
    }
