"""Building an index: texts, encoder, keys, trees, and what the trees find measured."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.io.files import LOCK, write_json
from rapo_jax.search.index.files import (
    BUILD,
    ENCODER,
    MANIFEST,
    read_json,
    shard_folder,
)
from rapo_jax.search.index.keys import Encode, Maker, make_keys
from rapo_jax.search.index.search import SearchIndex
from rapo_jax.search.index.texts import Texts, read_texts

COPIES = 3
"""Of a shard's float32 keys, at most, while ScaNN builds its tree."""
FIT_TEXTS = 200_000
"""Passages the encoder is fitted on, spread evenly over the corpus."""
RECALL_QUERIES = 100
RECALL_AT = 3
QUERY_WORDS = 8
SHARES = (0.05, 0.1, 0.2, 0.4, 1.0)
"""Shares of a tree's leaves to search that are tried, until enough is found."""


def shard_rows(*, memory_mb: int, width: int) -> int:
    """Passages of a shard, so that building its tree stays within `memory_mb`."""
    return max(1, (memory_mb << 20) // (4 * width * COPIES))


def build_index(
    corpus: str,
    folder: Path,
    maker: Maker,
    *,
    rows: int,
    malformed: str,
    kind: str,
    recall: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Builds the index of a corpus, or what is missing of it; returns its manifest.

    Raises:
        ValueError: the corpus cannot be read, see `read_jsonl`, or the folder holds an index of
            something else.
    """
    about = {
        "corpus": corpus_identity(corpus),
        "encoder": maker.about,
        "rows": rows,
        "on_malformed": malformed,
        "kind": kind,
    }
    _bind(folder, about)
    if (folder / MANIFEST).is_file():
        say("finished before; nothing to do")
        return read_json(folder / MANIFEST)
    found = read_texts(corpus, folder, rows=rows, malformed=malformed, say=say)
    say(found["summary"])
    shards = [shard_folder(folder, number) for number in range(found["shards"])]
    encode = _encoder(folder, maker, Texts(shards))
    started, width = time.perf_counter(), int(maker.about["width"])
    for number, shard in enumerate(shards, start=1):
        make_keys(shard, encode, width=width, kind=kind)
        say(f"keys: shard {number} of {len(shards)}, {time.perf_counter() - started:.0f} s")
    index = SearchIndex(folder, encode, share=1.0)
    measured = measure(index, goal=recall)
    if measured["recall_at_3"] < recall:
        say(
            f"recall@3 is {measured['recall_at_3']:.3f}, less than search_index.recall={recall}, "
            "with every leaf searched: these embeddings suit no tree; search_index.kind='exact' "
            "finds all, slowly"
        )
    manifest = about | {
        key: found[key] for key in ("passages", "lines", "malformed", "told", "sha256", "shards")
    }
    manifest |= {"trees": sum(shard.leaves > 0 for shard in index.shards)} | measured
    write_json(folder / MANIFEST, manifest)
    return manifest


def corpus_identity(corpus: str) -> dict[str, Any]:
    """Name, size and a digest of both ends of a file: enough to tell it from another one."""
    path = Path(corpus)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            ends = hashlib.sha256()
            for place in (0, max(0, size - (1 << 16))):
                file.seek(place)
                ends.update(file.read(1 << 16))
    except OSError as error:
        raise ValueError(f"{corpus}: cannot be read ({error.strerror or error})") from None
    return {"name": path.name, "bytes": size, "ends": ends.hexdigest()}


def _bind(folder: Path, about: dict[str, Any]) -> None:
    path = folder / BUILD
    if not path.is_file():
        if folder.is_dir() and any(each.name != LOCK for each in folder.iterdir()):
            raise ValueError(
                f"search_index.folder={str(folder)!r}: holds something else than an index; "
                "name a folder that is empty or not there"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, about)
        return
    found = read_json(path)
    for key, value in about.items():
        if found.get(key) != value:
            raise ValueError(
                f"search_index.folder={str(folder)!r}: holds an index with another {key} (it was "
                f"{found.get(key)!r}, is {value!r}); set it back, or name another folder"
            )


class _Spaced(Sequence[str]):
    """At most `count` of the texts, evenly spread, read when asked for."""

    def __init__(self, texts: Texts, count: int) -> None:
        size = len(texts)
        self._texts = texts
        self._places = np.linspace(0, size - 1, min(size, count)).round().astype(np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._texts[int(each)] for each in self._places[place]]
        return self._texts[int(self._places[place])]


def _encoder(folder: Path, maker: Maker, texts: Texts) -> Encode:
    """The index's own encoder, fitted once."""
    path = folder / ENCODER
    if not path.is_dir():
        made = maker.fit(_Spaced(texts, FIT_TEXTS))
        draft = folder / (ENCODER + ".tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        made.save(draft)
        draft.replace(path)
    return maker.load(path)


def measure(index: SearchIndex, *, goal: float) -> dict[str, Any]:
    """The least share of leaves with which recall@3 reaches `goal`, and that recall.

    Queries are words from all over a passage: runs of words are found more easily than questions
    are. A passage as near as the third nearest counts.
    """
    if not any(shard.leaves for shard in index.shards):
        return {"leaves_share": 1.0, "recall_at_3": 1.0, "recall_queries": 0}
    texts = _Spaced(index.texts, RECALL_QUERIES)
    query_BE = np.asarray(index.encode([_query(text) for text in texts]), np.float32)
    wanted = index.exact(query_BE, RECALL_AT)
    share = recall = 0.0
    for share in SHARES:
        index.share = share
        hits = [
            sum(score >= best[-1][1] - 1e-6 for _, score in index.nearest(row, RECALL_AT))
            / len(best)
            for row, best in zip(query_BE, wanted, strict=True)
        ]
        recall = float(np.mean(np.minimum(hits, 1)))
        if recall >= goal:
            break
    return {"leaves_share": share, "recall_at_3": recall, "recall_queries": len(query_BE)}


def _query(text: str) -> str:
    words = text.split()
    return " ".join(words[:: max(1, len(words) // QUERY_WORDS)][:QUERY_WORDS])
