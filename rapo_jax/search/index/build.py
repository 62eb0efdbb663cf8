"""Building an index: texts, encoder, keys, trees, and the measured recall of the trees."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from rapo_jax.config import SearchIndexSettings
from rapo_jax.io.digests import write_digests
from rapo_jax.io.files import LOCK, Json, write_json, write_or_check
from rapo_jax.search.exact import Encode
from rapo_jax.search.index.files import BUILD, ENCODER, MANIFEST, read_keys, shard_folder
from rapo_jax.search.index.keys import CorpusEncoder, make_keys
from rapo_jax.search.index.search import SearchIndex
from rapo_jax.search.index.texts import PassageTexts, read_texts

COPIES = 3
"""Most copies of a shard's float32 keys in memory while ScaNN builds its tree."""
FIT_TEXTS = 200_000
"""Passages that the encoder is fitted on, spread evenly over the corpus."""
RECALL_QUERIES = 100
RECALL_AT = 3
QUERY_WORDS = 8
SHARES = (0.05, 0.1, 0.2, 0.4, 1.0)
"""Shares of a tree's leaves to search, tried in order until the recall is reached."""


def shard_rows(*, memory_mb: int, width: int) -> int:
    """Passages of a shard, so that building its tree stays within `memory_mb`."""
    return max(1, (memory_mb << 20) // (4 * width * COPIES))


def build_index(
    settings: SearchIndexSettings,
    folder: Path,
    encoder: CorpusEncoder,
    *,
    rows: int,
    log: Callable[[str], None],
) -> dict[str, Json]:
    """Builds the index of a corpus, or its missing parts; returns its manifest.

    `rows` is the number of passages of a shard; `log` is called with lines of progress.

    Raises:
        ValueError: the corpus cannot be read, see `read_jsonl`, or the folder holds another index.
    """
    metadata = {
        "corpus": corpus_identity(settings.corpus),
        "encoder": encoder.metadata,
        "rows": rows,
        "on_malformed": settings.malformed,
        "kind": settings.kind,
    }
    key = f"search_index.folder={str(folder)!r}"
    begun = (folder / BUILD).is_file()
    if not begun and folder.is_dir() and any(each.name != LOCK for each in folder.iterdir()):
        raise ValueError(
            f"{key}: holds something else than an index; name a folder that is empty or not there"
        )
    write_or_check(
        folder / BUILD,
        metadata,
        what=f"{key}: holds an index",
        remedy="set it back, or name another folder",
    )
    if (folder / MANIFEST).is_file():
        log("finished before; nothing to do")
        return read_keys(folder / MANIFEST)
    counts = read_texts(settings.corpus, folder, rows=rows, malformed=settings.malformed, log=log)
    log(counts.pop("summary"))
    shards = [shard_folder(folder, number) for number in range(counts["shards"])]
    encode = _fitted(folder, encoder, PassageTexts(shards))
    started, width = time.perf_counter(), int(encoder.metadata["width"])
    for number, shard in enumerate(shards, start=1):
        make_keys(shard, encode, width=width, kind=settings.kind)
        log(f"keys: shard {number} of {len(shards)}, {time.perf_counter() - started:.0f} s")
    index = SearchIndex(folder, encode, share=1.0)
    measured = measure(index, goal=settings.recall)
    if measured["recall_at_3"] < settings.recall:
        log(
            f"recall@3 is {measured['recall_at_3']:.3f}, less than "
            f"search_index.recall={settings.recall}, with every leaf searched: these embeddings "
            "suit no tree; search_index.kind='exact' finds all, slowly"
        )
    trees = sum(shard.leaves > 0 for shard in index.shards)
    manifest = metadata | counts | {"trees": trees} | measured
    write_digests(folder, without=[LOCK])
    write_json(folder / MANIFEST, manifest)
    return manifest


def corpus_identity(corpus: str) -> dict[str, Json]:
    """Name, size and a digest of both ends of a file, by which another corpus is noticed."""
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


class _Spaced(Sequence[str]):
    """At most `count` of the texts, evenly spread, read from disk at each access."""

    def __init__(self, texts: PassageTexts, count: int) -> None:
        size = len(texts)
        self._texts = texts
        self._places = np.linspace(0, size - 1, min(size, count)).round().astype(np.int64)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._texts[int(each)] for each in self._places[place]]
        return self._texts[int(self._places[place])]


def _fitted(folder: Path, encoder: CorpusEncoder, texts: PassageTexts) -> Encode:
    """The encoder of the index, fitted once and kept in its folder."""
    path = folder / ENCODER
    if not path.is_dir():
        fitted = encoder.fit(_Spaced(texts, FIT_TEXTS))
        draft = folder / (ENCODER + ".tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        fitted.save(draft)
        draft.replace(path)
    return encoder.load(path)


def measure(index: SearchIndex, *, goal: float) -> dict[str, Json]:
    """The least share of leaves with which recall@3 reaches `goal`, and that recall.

    Queries are words spread over a passage: consecutive words are easier to find than questions
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
            sum(score >= best[-1][1] - 1e-6 for _, score in index.nearest(query_E, RECALL_AT))
            / len(best)
            for query_E, best in zip(query_BE, wanted, strict=True)
        ]
        recall = float(np.mean(np.minimum(hits, 1)))
        if recall >= goal:
            break
    return {"leaves_share": share, "recall_at_3": recall, "recall_queries": len(query_BE)}


def _query(text: str) -> str:
    words = text.split()
    return " ".join(words[:: max(1, len(words) // QUERY_WORDS)][:QUERY_WORDS])
