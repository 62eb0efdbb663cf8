"""Shapes of published models, to plan for them before they are downloaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rapo_jax.config import ModelSettings
from rapo_jax.model.hf_config import model_settings

_qwen = partial(dataclasses.replace, head_width=128, qkv_bias=True, qk_norm=False, rope_theta=1e6)
_llama = partial(
    dataclasses.replace, vocab=128_256, head_width=128, qkv_bias=False, qk_norm=False,
    rope_theta=5e5, norm_eps=1e-5, tied=False,
)  # fmt: skip

# config.json of huggingface.co/Qwen/Qwen2.5-*-Instruct and meta-llama/Meta-Llama-3-8B-Instruct.
PUBLISHED: Mapping[str, Callable[[ModelSettings], ModelSettings]] = {
    "Qwen2.5-0.5B": partial(
        _qwen, vocab=151_936, width=896, ffn=4864, layers=24, heads=14, kv_heads=2, head_width=64,
        tied=True,
    ),
    "Qwen2.5-1.5B": partial(
        _qwen, vocab=151_936, width=1536, ffn=8960, layers=28, heads=12, kv_heads=2, tied=True
    ),
    "Qwen2.5-3B": partial(
        _qwen, vocab=151_936, width=2048, ffn=11_008, layers=36, heads=16, kv_heads=2, tied=True
    ),
    "Qwen2.5-7B": partial(
        _qwen, vocab=152_064, width=3584, ffn=18_944, layers=28, heads=28, kv_heads=4, tied=False
    ),
    "Meta-Llama-3-8B": partial(_llama, width=4096, ffn=14_336, layers=32, heads=32, kv_heads=8),
}  # fmt: skip
"""Name -> function that gives model settings the published shape."""


def planned_model(base: ModelSettings) -> ModelSettings:
    """The model to plan for: of the folder, of a published model with its name, or `base`.

    Raises:
        ValueError: the folder does not exist and its name is not in PUBLISHED, or `model.vocab` is
        not set.
    """
    if base.folder and not (Path(base.folder) / "config.json").is_file():
        name = Path(base.folder).name.removesuffix("-Instruct")
        if name not in PUBLISHED:
            raise ValueError(
                f"model.folder={base.folder!r}: the folder does not exist, and its name is not one "
                f"whose shape is known ({', '.join(PUBLISHED)}); give a folder with a config.json"
            )
        return PUBLISHED[name](base)
    model = model_settings(base)
    if model.vocab == 0:
        raise ValueError("model.vocab=0: a plan reads no tokenizer; give the number of its tokens")
    return model
