"""Maximum inner product search over the keys of the buffer: exact, or ScaNN (paper 4.1.1)."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from rapo_jax.search.backends import KINDS

log = logging.getLogger(__name__)

TREE_FROM = 20_000
"""Below this many keys brute force is fast enough, and exactly reproducible."""
_SPARE = 8
"""Candidates beyond those asked for, so that float32 rounding in a search decides nothing."""


class Index:
    """Nearest keys by inner product, ties to the lowest index.

    Equal keys are searched once: masked keys repeat by the hundred. A backend only proposes
    candidates; a float64 product in fixed order decides, so a row's result does not depend on the
    batch it came in (kinds 'exact' and 'brute'; the tree's candidates may vary with the batch).
    A query with a non-finite number finds nothing: index -1, similarity NaN.
    """

    def __init__(self, key_ME: np.ndarray, *, kind: str, folder: Path | None) -> None:
        self.kind = kind
        self.size, self.width = key_ME.shape
        first_U, group_M = _first_of_equal_rows(key_ME)
        self._key_UE = np.ascontiguousarray(key_ME[first_U])
        self._member_M = np.argsort(group_M, kind="stable").astype(np.int32)
        self._count_U = np.bincount(group_M)
        self._start_U = np.cumsum(self._count_U) - self._count_U
        self._candidates = KINDS[kind](self._key_UE, folder)

    def search(self, key_BE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest key of each query: (index_B int32, similarity_B float32)."""
        index_Bn, similarity_Bn = self.search_many(key_BE, 1)
        return index_Bn[:, 0], similarity_Bn[:, 0]

    def search_many(self, key_BE: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n nearest keys of each query, best first; -1 and NaN fill up where fewer exist."""
        key_BE = np.asarray(key_BE, np.float32)
        if key_BE.ndim != 2 or key_BE.shape[1] != self.width:
            raise ValueError(f"query shape {key_BE.shape}: the index needs [B, {self.width}]")
        if n < 1:
            raise ValueError(f"n={n}: ask for at least 1 neighbour")
        index_Bn = np.full((len(key_BE), n), -1, np.int32)
        similarity_Bn = np.full((len(key_BE), n), np.nan, np.float32)
        finite_B = np.isfinite(key_BE).all(axis=1)
        if finite_B.any():
            found = self._search_finite(key_BE[finite_B], n)
            index_Bn[finite_B], similarity_Bn[finite_B] = found
        return index_Bn, similarity_Bn

    def _search_finite(self, key_BE: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        place_BC = self._candidates(key_BE, min(n + _SPARE, len(self._key_UE)))
        index_Bn = np.full((len(key_BE), n), -1, np.int32)
        similarity_Bn = np.full((len(key_BE), n), np.nan, np.float32)
        for b, place_C in enumerate(place_BC):
            place_C = place_C[place_C >= 0]
            score_C = (self._key_UE[place_C].astype(np.float64) * key_BE[b]).sum(axis=-1)
            filled = 0
            for c in np.lexsort((place_C, -score_C)):
                start = self._start_U[place_C[c]]
                count = min(self._count_U[place_C[c]], n - filled)
                index_Bn[b, filled : filled + count] = self._member_M[start : start + count]
                similarity_Bn[b, filled : filled + count] = score_C[c]
                filled += count
                if filled == n:
                    break
        return index_Bn, similarity_Bn


def make_index(key_ME: np.ndarray, *, kind: str, folder: str | Path | None = None) -> Index:
    """Index over keys; `kind` is one of KINDS, or 'auto': brute below TREE_FROM keys, else tree.

    Two builds of a tree over the same keys differ a little, even on one thread: give a `folder` to
    keep the tree in, and a restarted run finds what the first one found (and skips the build).

    Where ScaNN cannot be imported, 'auto', 'brute' and 'tree' become the exact numpy search, said
    in one log line. Raises ValueError for no keys, non-finite keys, an unknown kind.
    """
    key_ME = np.ascontiguousarray(key_ME, np.float32) + np.float32(0)  # no -0.0: equal is equal
    if key_ME.ndim != 2 or 0 in key_ME.shape:
        raise ValueError(f"key shape {key_ME.shape}: an index needs a key; build the buffer first")
    bad = np.flatnonzero(~np.isfinite(key_ME).all(axis=1))
    if len(bad):
        raise ValueError(
            f"key row {bad[0]} (of {len(bad)} such rows) is not finite: check the encoder"
        )
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"retrieval.index={kind!r}: choose one of {', '.join(['auto', *KINDS])}")
    chosen = kind if kind != "auto" else ("brute" if len(key_ME) < TREE_FROM else "tree")
    if chosen != "exact" and not _scann_imports():
        chosen = "exact"
    return Index(key_ME, kind=chosen, folder=None if folder is None else Path(folder))


def recall_at_1(index: Index, key_ME: np.ndarray, query_BE: np.ndarray) -> float:
    """Share of queries for which `index` finds a key as near as the nearest (ties count)."""
    _, found_B = index.search(query_BE)
    _, best_B = make_index(key_ME, kind="exact").search(query_BE)
    return float(np.mean(found_B >= best_B - 1e-6)) if len(query_BE) else math.nan


def _first_of_equal_rows(key_ME: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the first of each set of equal rows, ascending, and each row's set."""
    seen: dict[bytes, int] = {}
    group_M = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in key_ME])
    _, first_U = np.unique(group_M, return_index=True)
    return first_U, group_M


def _scann_imports() -> bool:
    try:
        import scann  # noqa: F401
    except ImportError as error:
        log.warning("ScaNN cannot be imported (%s): exact numpy search instead", error)
        return False
    return True
