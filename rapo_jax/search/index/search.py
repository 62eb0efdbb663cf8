"""Search in an index on disk: trees propose, the memory-mapped keys decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.search.batches import Hits
from rapo_jax.search.index.files import (
    ENCODER,
    KEYS_DONE,
    MANIFEST,
    TREE,
    read_json,
    shard_folder,
)
from rapo_jax.search.index.keys import Encode, load_keys, scann_imports
from rapo_jax.search.index.texts import Texts

CANDIDATES = 400
"""Passages of each shard that its tree proposes, at least; their keys are read from disk. Of
200,000 made passages 100 held only 0.927 of the three nearest, with every leaf searched."""
EXACT_ROWS = 8192
MIN_LEAVES = 16


class Shard:
    """One part of the corpus: its keys, and its tree if it has one."""

    def __init__(self, folder: Path) -> None:
        self.key_NE = load_keys(folder)
        self.leaves = int(read_json(folder / KEYS_DONE)["leaves"])
        self._searcher = None
        if self.leaves and scann_imports():
            import scann

            self._searcher = scann.scann_ops_pybind.load_searcher(str(folder / TREE))

    def nearest(self, query_E: np.ndarray, k: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        """(row, similarity) of about the k nearest, the best first; `share` of the leaves."""
        if self._searcher is None:
            return self.exact(query_E[None], k)[0]
        count = min(max(CANDIDATES, 4 * k), len(self.key_NE))
        leaves = min(self.leaves, max(MIN_LEAVES, round(share * self.leaves)))
        row_C, rough_C = self._searcher.search(
            query_E, final_num_neighbors=count, leaves_to_search=leaves
        )
        row_C = np.sort(row_C[np.isfinite(rough_C)].astype(np.int64))  # too few come back as NaN
        similarity_C = self.key_NE[row_C].astype(np.float32) @ query_E
        order = np.argsort(-similarity_C, kind="stable")[:k]
        return row_C[order], similarity_C[order]

    def exact(self, query_BE: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k nearest of each query by all keys, ties to the first row."""
        k = min(k, len(self.key_NE))
        row_BC = np.empty((len(query_BE), 0), np.int64)
        found_BC = np.empty((len(query_BE), 0), np.float32)
        for start in range(0, len(self.key_NE), EXACT_ROWS):
            block_NE = np.asarray(self.key_NE[start : start + EXACT_ROWS], np.float32)
            # Row by row the same sum, whatever the number of queries.
            found_BN = np.stack([block_NE @ query_E for query_E in query_BE])
            row_BN = np.broadcast_to(np.arange(start, start + len(block_NE)), found_BN.shape)
            row_BC = np.concatenate([row_BC, row_BN], axis=1)
            found_BC = np.concatenate([found_BC, found_BN], axis=1)
            order_Bk = np.argsort(-found_BC, axis=1, kind="stable")[:, :k]
            row_BC = np.take_along_axis(row_BC, order_Bk, axis=1)
            found_BC = np.take_along_axis(found_BC, order_Bk, axis=1)
        return list(zip(row_BC, found_BC, strict=True))


class SearchIndex:
    """An index that was built: queries in, passages out.

    A query is searched alone, so what it finds does not depend on the others. In memory are the
    trees alone (E / 2 bytes a passage); keys and texts are read where they lie.
    """

    def __init__(self, folder: Path, encode: Encode, *, share: float) -> None:
        self.folder, self.encode, self.share = folder, encode, share
        folders = [shard_folder(folder, number) for number in _shards(folder)]
        self.shards = [Shard(each) for each in folders]
        self.texts = Texts(folders)

    def __len__(self) -> int:
        return len(self.texts)

    def __call__(self, queries: Sequence[str], topk: int) -> list[Hits]:
        """The hits of each query, the best first."""
        if not queries:
            return []
        query_BE = np.asarray(self.encode(queries), np.float32)
        return [
            [
                (self.texts.document(place), similarity)
                for place, similarity in self.nearest(row, topk)
            ]
            for row in query_BE
        ]

    def nearest(self, query_E: np.ndarray, k: int) -> list[tuple[int, float]]:
        """(passage, similarity) of the k nearest, the best first, ties in corpus order."""
        found = [shard.nearest(query_E, k, self.share) for shard in self.shards]
        return self._merged(found, k)

    def exact(self, query_BE: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
        """The same by all keys: what `nearest` is measured against. Reads every key once."""
        by_shard = [shard.exact(query_BE, k) for shard in self.shards]
        return [self._merged(list(found), k) for found in zip(*by_shard, strict=True)]

    def _merged(
        self, found: Sequence[tuple[np.ndarray, np.ndarray]], k: int
    ) -> list[tuple[int, float]]:
        starts = self.texts.starts
        place_C = np.concatenate([row + starts[i] for i, (row, _) in enumerate(found)])
        similarity_C = np.concatenate([similarity for _, similarity in found])
        order = np.argsort(-similarity_C, kind="stable")[:k]
        return [(int(place_C[i]), float(similarity_C[i])) for i in order]


def _shards(folder: Path) -> range:
    return range(int(read_json(folder / "texts.json")["shards"]))


def open_index(folder: str | Path) -> SearchIndex:
    """Opens an index with the encoder that lies in it, on the host's processor.

    Raises:
        ValueError: it is not there, not finished, or damaged.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"tools.search.index={str(folder)!r}: no finished index is there; build it with "
            "--config.stages=\"('search_index',)\""
        )
    manifest = read_manifest(folder)
    return SearchIndex(folder, _query_encoder(folder, manifest), share=manifest["leaves_share"])


def read_manifest(folder: Path) -> dict[str, Any]:
    return read_json(folder / MANIFEST)


def _query_encoder(folder: Path, manifest: dict[str, Any]) -> Encode:
    about = manifest["encoder"]
    if about["name"] == "ngram":
        from rapo_jax.search.ngram import NgramEncoder

        return NgramEncoder.load(folder / ENCODER)
    from rapo_jax.search.index.minilm import MiniLm

    return MiniLm(folder / ENCODER, tokens=about["tokens"])
