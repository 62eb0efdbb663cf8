"""MiniLM in numpy, which embeds the queries of an index; corpora are embedded by the Flax one.

A callback of a running program on the accelerator may call it, and must not use jax.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FILES = ("config.json", "model.safetensors", "tokenizer.json")


class MiniLm:
    """Texts -> unit rows [n, E] float32: the mean over a text's tokens of BERT's last layer.

    A text is cut to `tokens` as `rapo_jax.model.encoder.tokenize_texts` does, and embedded alone.
    """

    def __init__(self, folder: Path, *, tokens: int) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._tensors = load_file(folder / "model.safetensors")
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.width, self._layers = config["hidden_size"], config["num_hidden_layers"]
            self._heads, self._epsilon = config["num_attention_heads"], config["layer_norm_eps"]
        except Exception as error:  # of json, safetensors or tokenizers
            raise ValueError(f"{folder}: no encoder ({error}); build the index again") from error
        self._tokenizer.no_padding()  # MiniLM's file bakes in both, to 128 tokens
        self._tokenizer.no_truncation()
        self._tokens = min(tokens, config["max_position_embeddings"])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = [self._embed(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]
        return np.stack(rows) if rows else np.zeros((0, self.width), np.float32)

    def _embed(self, ids: list[int]) -> np.ndarray:
        if len(ids) > self._tokens:
            head = self._tokens // 2
            ids = ids[:head] + ids[len(ids) - (self._tokens - head) :]
        if not ids:
            return np.zeros(self.width, np.float32)
        t = self._tensors
        x_XD = (
            t["embeddings.word_embeddings.weight"][ids]
            + t["embeddings.position_embeddings.weight"][: len(ids)]
            + t["embeddings.token_type_embeddings.weight"][0]
        ).astype(np.float32)
        x_XD = self._norm(x_XD, "embeddings.LayerNorm")
        for i in range(self._layers):
            x_XD = self._layer(x_XD, f"encoder.layer.{i}.")
        mean_D = x_XD.mean(axis=0)
        return mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)

    def _layer(self, x_XD: np.ndarray, name: str) -> np.ndarray:
        from scipy.special import erf

        shape = (len(x_XD), self._heads, -1)
        q_XNH, k_TNH, v_TNH = (
            self._dense(x_XD, f"{name}attention.self.{each}").reshape(shape)
            for each in ("query", "key", "value")
        )
        score_NXT = np.einsum("XNH,TNH->NXT", q_XNH, k_TNH) / np.float32(q_XNH.shape[-1] ** 0.5)
        weight_NXT = np.exp(score_NXT - score_NXT.max(axis=-1, keepdims=True))
        weight_NXT /= weight_NXT.sum(axis=-1, keepdims=True)
        mixed_XD = np.einsum("NXT,TNH->XNH", weight_NXT, v_TNH).reshape(x_XD.shape)
        x_XD = self._norm(
            x_XD + self._dense(mixed_XD, f"{name}attention.output.dense"),
            f"{name}attention.output.LayerNorm",
        )
        hidden_XF = self._dense(x_XD, f"{name}intermediate.dense")
        hidden_XF = hidden_XF * (1 + erf(hidden_XF / np.float32(2**0.5))) / 2
        return self._norm(
            x_XD + self._dense(hidden_XF, f"{name}output.dense"), f"{name}output.LayerNorm"
        )

    def _dense(self, x_XD: np.ndarray, name: str) -> np.ndarray:
        return x_XD @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _norm(self, x_XD: np.ndarray, name: str) -> np.ndarray:
        centred_XD = x_XD - x_XD.mean(axis=-1, keepdims=True)
        scale_X1 = np.sqrt((centred_XD**2).mean(axis=-1, keepdims=True) + self._epsilon)
        return (
            centred_XD / scale_X1 * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]
        )
