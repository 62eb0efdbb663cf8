"""Encoders of retrieval keys: the part inside the rollout program, and its input from the host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.config import RetrievalSettings
from rapo_jax.io.digests import digests
from rapo_jax.model.encoder import find_minilm, load_encoder, tokenize_texts
from rapo_jax.types import Array


class DeviceEncoder(NamedTuple):
    """The part of an encoder that runs inside the rollout program, and its host tokenizer."""

    embed: Callable[[jax.Array], jax.Array]
    query_shape: jax.ShapeDtypeStruct
    tokenize: Callable[[Sequence[str]], np.ndarray] | None
    """Key texts -> queries; None where the host's encoder makes the keys itself."""
    identity: str


def device_encoder(settings: RetrievalSettings) -> DeviceEncoder:
    """The encoder of `retrieval.encoder`.

    ngram: the host embeds. minilm: the host tokenizes, the device embeds inside the rollout.
    """
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

    def embed(query_BX: jax.Array) -> Array:
        return module.apply(params, query_BX[:, 1:], query_BX[:, 0])

    shape = jax.ShapeDtypeStruct((1 + width,), jnp.int32)
    files = digests(Path(folder), ("config.json", "model.safetensors", "tokenizer.json"))
    identity = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]
    return DeviceEncoder(embed, shape, tokenize, f"minilm:{identity}:{width}")
