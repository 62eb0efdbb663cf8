"""Encoders of keys as a rollout has them: what runs in its program, and what the host feeds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.config import RetrievalSettings
from rapo_jax.model.encoder import find_minilm, load_encoder, tokenize_texts


class DeviceEncoder(NamedTuple):
    """The half of an encoder that runs inside the rollout, and what the host feeds it."""

    embed: Callable[[jax.Array], jax.Array]
    query_E: jax.ShapeDtypeStruct
    tokenize: Callable[[Sequence[str]], np.ndarray] | None
    """Key texts to queries; None where the host's encoder makes the keys itself."""
    identity: str


def device_encoder(settings: RetrievalSettings) -> DeviceEncoder:
    """`ngram`: the host embeds, the device passes on. `minilm`: the host tokenizes, the device
    embeds, inside the rollout's program."""
    return {"ngram": _ngram, "minilm": _minilm}[settings.encoder](settings)


def _ngram(settings: RetrievalSettings) -> DeviceEncoder:
    shape = jax.ShapeDtypeStruct((settings.width,), jnp.float32)
    return DeviceEncoder(lambda query_BE: query_BE, shape, None, "")


def _minilm(settings: RetrievalSettings) -> DeviceEncoder:
    folder = settings.encoder_folder or find_minilm()
    module, params, tokenizer = load_encoder(folder)
    width = settings.encoder_tokens

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        token_BX, length_B = tokenize_texts(tokenizer, texts, width=width)
        return np.concatenate([length_B[:, None], token_BX], axis=1).astype(np.int32)

    def embed(query_BX: jax.Array) -> Any:
        return module.apply(params, query_BX[:, 1:], query_BX[:, 0])

    shape = jax.ShapeDtypeStruct((1 + width,), jnp.int32)
    return DeviceEncoder(embed, shape, tokenize, f"minilm:{Path(folder).name}:{width}")
