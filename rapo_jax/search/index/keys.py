"""Embeddings of a shard's passages, and ScaNN's tree over them."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rapo_jax.io.files import write_json
from rapo_jax.search.index.files import KEYS, KEYS_DONE, TREE, read_json
from rapo_jax.search.index.texts import Texts

Encode = Callable[[Sequence[str]], np.ndarray]
"""n texts -> unit rows [n, E] float32."""

CHUNK = 4096
"""Passages embedded at a time: enough to sort by length, few enough to hold."""
TREE_FROM = 20_000
"""Below so many passages a shard is searched exactly: fast enough, and the same on any machine."""
TREE_MIN = 16
TRAINED_ON = 100_000
KINDS = ("auto", "exact", "tree")

log = logging.getLogger(__name__)


class Made(NamedTuple):
    """An encoder that fits a corpus."""

    encode: Encode
    save: Callable[[Path], None]
    """Writes all that embeds a query into an existing folder."""


class Maker(NamedTuple):
    """How a corpus is embedded."""

    about: dict[str, Any]
    """Its 'name', 'width' and whatever else an embedding depends on."""
    fit: Callable[[Sequence[str]], Made]
    load: Callable[[Path], Encode]
    """The encoder that `save` wrote."""


def make_keys(folder: Path, encode: Encode, *, width: int, kind: str) -> None:
    """Embeds one shard and builds its tree, unless both are there."""
    if (folder / KEYS_DONE).is_file():
        return
    texts = Texts([folder])
    if not (folder / KEYS).is_file():
        draft = folder / (KEYS + ".tmp")
        with open(draft, "wb") as file:
            shape = (len(texts), width)
            about = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, about)
            for start in range(0, len(texts), CHUNK):
                file.write(_embedded(encode, texts[start : start + CHUNK], width).tobytes())
        draft.replace(folder / KEYS)
    wants_tree = kind == "tree" or (kind == "auto" and len(texts) >= TREE_FROM)
    with_tree = wants_tree and len(texts) >= TREE_MIN and scann_imports()
    leaves = _make_tree(folder) if with_tree else 0
    scann = version("scann") if leaves else ""
    write_json(folder / KEYS_DONE, {"rows": len(texts), "leaves": leaves, "scann": scann})


def _embedded(encode: Encode, texts: list[str], width: int) -> np.ndarray:
    rows = np.asarray(encode(texts))
    if rows.shape != (len(texts), width) or not np.isfinite(rows).all():
        raise ValueError(
            f"search_index.encoder: {len(texts)} texts gave rows {rows.shape}, not finite ones of "
            f"{width} numbers; check the encoder"
        )
    return rows.astype("<f2")


def load_keys(folder: Path) -> np.ndarray:
    """The memory-mapped embeddings [n, E] float16 of a finished shard."""
    try:
        key_NE = np.load(folder / KEYS, mmap_mode="r", allow_pickle=False)
        rows = read_json(folder / KEYS_DONE)["rows"]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder}: its keys cannot be read ({error}); build the index again"
        ) from None
    if len(key_NE) != rows:
        raise ValueError(f"{folder}: {len(key_NE)} keys of {rows}; build the index again")
    return key_NE


def _make_tree(folder: Path) -> int:
    """Tree and 4-bit codes of the shard's keys, without the keys themselves; returns its leaves."""
    import scann

    key_NE = load_raw(folder)
    leaves = max(2, round(math.sqrt(len(key_NE))))
    builder = scann.scann_ops_pybind.builder(key_NE, 1, "dot_product").tree(
        leaves, leaves, training_sample_size=min(len(key_NE), TRAINED_ON)
    )
    searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).build()
    draft = folder / (TREE + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    searcher.serialize(str(draft), relative_path=True)  # else the draft's name is inside
    shutil.rmtree(folder / TREE, ignore_errors=True)
    draft.replace(folder / TREE)
    return leaves


def load_raw(folder: Path) -> np.ndarray:
    """A shard's keys in memory, float32."""
    return np.asarray(np.load(folder / KEYS, mmap_mode="r", allow_pickle=False), np.float32)


def scann_imports() -> bool:
    try:
        import scann  # noqa: F401
    except ImportError as error:
        log.warning("ScaNN cannot be imported (%s): exact numpy search instead", error)
        return False
    return True
