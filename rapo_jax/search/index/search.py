"""Search in an index on disk: trees propose candidates, the memory-mapped keys rank them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rapo_jax.io.digests import check_digests
from rapo_jax.io.files import Json
from rapo_jax.search.backends import scann_available
from rapo_jax.search.batches import Hits
from rapo_jax.search.exact import Encode
from rapo_jax.search.index.files import (
    ENCODER,
    KEYS_DONE,
    MANIFEST,
    TEXTS_DONE,
    TREE,
    read_keys,
    shard_folder,
)
from rapo_jax.search.index.keys import load_keys
from rapo_jax.search.index.minilm import MiniLm
from rapo_jax.search.index.texts import PassageTexts
from rapo_jax.search.ngram import NgramEncoder

CANDIDATES = 400
"""Passages of each shard that its tree proposes, at least; their keys are read from disk. Of
200,000 made passages 100 held only 0.927 of the three nearest, with every leaf searched."""
EXACT_ROWS = 8192
MIN_LEAVES = 16


class Shard:
    """One part of the corpus: its keys, and its tree if it has one."""

    def __init__(self, folder: Path) -> None:
        self.key_ME = load_keys(folder)
        self.leaves = int(read_keys(folder / KEYS_DONE, "leaves")["leaves"])
        self._searcher = None
        if self.leaves and scann_available():
            import scann

            self._searcher = scann.scann_ops_pybind.load_searcher(str(folder / TREE))

    def nearest(self, query_E: np.ndarray, k: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        """(row, similarity) of the k nearest in a `share` of the leaves, the best first."""
        if self._searcher is None:
            return self.exact(query_E[None], k)[0]
        count = min(max(CANDIDATES, 4 * k), len(self.key_ME))
        leaves = min(self.leaves, max(MIN_LEAVES, round(share * self.leaves)))
        row_C, rough_C = self._searcher.search(
            query_E, final_num_neighbors=count, leaves_to_search=leaves
        )
        row_C = np.sort(row_C[np.isfinite(rough_C)].astype(np.int64))  # missing ones are NaN
        similarity_C = self.key_ME[row_C].astype(np.float32) @ query_E
        order = np.argsort(-similarity_C, kind="stable")[:k]
        return row_C[order], similarity_C[order]

    def exact(self, query_BE: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k nearest of all keys for each query, ties to the first row."""
        k = min(k, len(self.key_ME))
        row_BC = np.empty((len(query_BE), 0), np.int64)
        similarity_BC = np.empty((len(query_BE), 0), np.float32)
        for start in range(0, len(self.key_ME), EXACT_ROWS):
            block_ME = np.asarray(self.key_ME[start : start + EXACT_ROWS], np.float32)
            # Row by row the same sum, whatever the number of queries.
            similarity_BM = np.stack([block_ME @ query_E for query_E in query_BE])
            row_BM = np.broadcast_to(np.arange(start, start + len(block_ME)), similarity_BM.shape)
            row_BC = np.concatenate([row_BC, row_BM], axis=1)
            similarity_BC = np.concatenate([similarity_BC, similarity_BM], axis=1)
            order_BC = np.argsort(-similarity_BC, axis=1, kind="stable")[:, :k]
            row_BC = np.take_along_axis(row_BC, order_BC, axis=1)
            similarity_BC = np.take_along_axis(similarity_BC, order_BC, axis=1)
        return list(zip(row_BC, similarity_BC, strict=True))


class SearchIndex:
    """A finished index as a `Search`: queries in, passages out.

    A query is searched alone, so its hits do not depend on the others. Only the trees are in memory
    (E / 2 bytes a passage); keys and texts are read from disk.
    """

    def __init__(self, folder: Path, encode: Encode, *, share: float) -> None:
        self.folder, self.encode, self.share = folder, encode, share
        count = int(read_keys(folder / TEXTS_DONE, "shards")["shards"])
        folders = [shard_folder(folder, number) for number in range(count)]
        self.shards = [Shard(each) for each in folders]
        self.texts = PassageTexts(folders)

    def __len__(self) -> int:
        return len(self.texts)

    def __call__(self, queries: Sequence[str], topk: int) -> list[Hits]:
        """The hits of each query, the best first."""
        if not queries:
            return []
        query_BE = np.asarray(self.encode(queries), np.float32)
        return [
            [(self.texts.document(place), x) for place, x in self.nearest(query_E, topk)]
            for query_E in query_BE
        ]

    def nearest(self, query_E: np.ndarray, k: int) -> list[tuple[int, float]]:
        """(passage, similarity) of the k nearest, the best first, ties in corpus order."""
        return self._merged([shard.nearest(query_E, k, self.share) for shard in self.shards], k)

    def exact(self, query_BE: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
        """The same for each query by all keys, the reference for the recall of `nearest`."""
        by_shard = [shard.exact(query_BE, k) for shard in self.shards]
        return [self._merged(hits, k) for hits in zip(*by_shard, strict=True)]

    def _merged(
        self, by_shard: Sequence[tuple[np.ndarray, np.ndarray]], k: int
    ) -> list[tuple[int, float]]:
        starts = self.texts.starts
        place_C = np.concatenate([row_C + starts[i] for i, (row_C, _) in enumerate(by_shard)])
        similarity_C = np.concatenate([similarity_C for _, similarity_C in by_shard])
        order = np.argsort(-similarity_C, kind="stable")[:k]
        return [(int(place_C[i]), float(similarity_C[i])) for i in order]


def open_index(folder: str | Path) -> SearchIndex:
    """Opens an index with its encoder, which runs on the host.

    Raises:
        ValueError: the index is missing, not finished, or damaged.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"tools.search.index={str(folder)!r}: no finished index is there; build it with "
            "--config.stages=\"('search_index',)\""
        )
    manifest = read_keys(folder / MANIFEST, "encoder", "leaves_share")
    check_digests(folder, what="the search index", remedy="build it again")
    encode = _query_encoder(folder, manifest["encoder"])
    return SearchIndex(folder, encode, share=manifest["leaves_share"])


def _query_encoder(folder: Path, metadata: dict[str, Json]) -> Encode:
    if metadata["name"] == "ngram":
        return NgramEncoder.load(folder / ENCODER)
    return MiniLm(folder / ENCODER, tokens=metadata["tokens"])
