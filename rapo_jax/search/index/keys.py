"""Embeddings of a shard's passages, and ScaNN's tree over them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rapo_jax.io.files import Json, write_json
from rapo_jax.search.backends import TREE_FROM, TREE_MIN, scann_available, tree_builder, tree_leaves
from rapo_jax.search.exact import Encode
from rapo_jax.search.index.files import KEYS, KEYS_DONE, TREE, read_keys
from rapo_jax.search.index.texts import PassageTexts

CHUNK = 4096
"""Passages embedded at a time: enough to sort by length, few enough to hold in memory."""
TRAINED_ON = 100_000


class FittedEncoder(NamedTuple):
    """An encoder fitted to a corpus."""

    encode: Encode
    save: Callable[[Path], None]
    """Writes the files that embed a query into an existing folder."""


class CorpusEncoder(NamedTuple):
    """A kind of encoder, not yet fitted to a corpus."""

    metadata: dict[str, Json]
    """'name', 'width' and whatever else an embedding depends on."""
    fit: Callable[[Sequence[str]], FittedEncoder]
    load: Callable[[Path], Encode]
    """Reads the encoder that `save` wrote."""


def gets_tree(kind: str, rows: int) -> bool:
    """Whether a shard of this many passages gets a tree; `kind` is auto, exact or tree."""
    wanted = kind == "tree" or (kind == "auto" and rows >= TREE_FROM)
    return wanted and rows >= TREE_MIN and scann_available()


def make_keys(folder: Path, encode: Encode, *, width: int, kind: str) -> None:
    """Embeds one shard and builds its tree, unless both are there."""
    if (folder / KEYS_DONE).is_file():
        return
    texts = PassageTexts([folder])
    if not (folder / KEYS).is_file():
        draft = folder / (KEYS + ".tmp")
        with open(draft, "wb") as file:
            shape = (len(texts), width)
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(texts), CHUNK):
                file.write(_embedded(encode, texts[start : start + CHUNK], width).tobytes())
        draft.replace(folder / KEYS)
    leaves = _make_tree(folder) if gets_tree(kind, len(texts)) else 0
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
        key_ME = np.load(folder / KEYS, mmap_mode="r", allow_pickle=False)
        rows = read_keys(folder / KEYS_DONE, "rows")["rows"]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder}: its keys cannot be read ({error}); build the index again"
        ) from None
    if len(key_ME) != rows:
        raise ValueError(f"{folder}: {len(key_ME)} keys of {rows}; build the index again")
    return key_ME


def _make_tree(folder: Path) -> int:
    """Tree and 4-bit codes of the shard's keys, without the keys themselves; returns its leaves."""
    key_ME = np.asarray(np.load(folder / KEYS, mmap_mode="r", allow_pickle=False), np.float32)
    leaves = tree_leaves(len(key_ME))
    searcher = tree_builder(key_ME, searched=leaves, trained_on=TRAINED_ON).build()
    draft = folder / (TREE + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    searcher.serialize(str(draft), relative_path=True)  # else the draft's name is inside
    shutil.rmtree(folder / TREE, ignore_errors=True)
    draft.replace(folder / TREE)
    return leaves
