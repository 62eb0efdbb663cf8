"""Maximum inner product search over the keys of the buffer: exact, or ScaNN (paper 4.1.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rapo_jax.search.backends import KINDS, TREE_FROM, scann_available

_SPARE = 8
"""Extra candidates of a backend, so that its float32 rounding does not change the result."""


class Index:
    """Nearest keys by inner product, ties to the lowest index.

    Equal keys are searched once: masked keys repeat by the hundred. A backend only proposes
    candidates; a float64 product in fixed order ranks them, so a row's result does not depend on
    its batch (kinds 'exact' and 'brute'; the tree's candidates may vary with the batch).
    A query with a non-finite number has no hit: index -1, similarity NaN.
    """

    def __init__(self, key_ME: np.ndarray, *, kind: str, folder: Path | None) -> None:
        self.kind = kind
        self.size, self.width = key_ME.shape
        first, group_M = _first_of_equal_rows(key_ME)
        # Row i of the distinct keys is shared by members[start[i] : start[i] + count[i]].
        self._distinct = np.ascontiguousarray(key_ME[first])
        self._members = np.argsort(group_M, kind="stable").astype(np.int32)
        self._count = np.bincount(group_M)
        self._start = np.cumsum(self._count) - self._count
        self._candidates = KINDS[kind](self._distinct, folder)

    def search(self, key_BE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest key of each query: (index_B int32, similarity_B float32)."""
        index_BC, similarity_BC = self.search_many(key_BE, 1)
        return index_BC[:, 0], similarity_BC[:, 0]

    def search_many(self, key_BE: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n nearest keys of each query, best first; missing ones are -1 and NaN."""
        key_BE = np.asarray(key_BE, np.float32)
        if key_BE.ndim != 2 or key_BE.shape[1] != self.width:
            raise ValueError(f"query shape {key_BE.shape}: the index needs [B, {self.width}]")
        if n < 1:
            raise ValueError(f"n={n}: ask for at least 1 neighbour")
        index_BC = np.full((len(key_BE), n), -1, np.int32)
        similarity_BC = np.full((len(key_BE), n), np.nan, np.float32)
        finite = np.flatnonzero(np.isfinite(key_BE).all(axis=1))
        if not len(finite):
            return index_BC, similarity_BC
        row_BC = self._candidates(key_BE[finite], min(n + _SPARE, len(self._distinct)))
        for b, row_C in zip(finite, row_BC, strict=True):
            row_C = row_C[row_C >= 0]
            score_C = (self._distinct[row_C].astype(np.float64) * key_BE[b]).sum(axis=-1)
            filled = 0
            for c in np.lexsort((row_C, -score_C)):
                start = self._start[row_C[c]]
                count = min(self._count[row_C[c]], n - filled)
                index_BC[b, filled : filled + count] = self._members[start : start + count]
                similarity_BC[b, filled : filled + count] = score_C[c]
                filled += count
                if filled == n:
                    break
        return index_BC, similarity_BC


def make_index(key_ME: np.ndarray, *, kind: str, folder: str | Path | None = None) -> Index:
    """Index over keys; `kind` is one of KINDS, or 'auto': brute below TREE_FROM keys, else tree.

    Two builds of a tree over the same keys differ a little, even on one thread: with a `folder` the
    tree is kept there, and a restarted run has the same hits (and skips the build).

    Where ScaNN cannot be imported, every kind becomes the exact numpy search, with a warning in the
    log. Raises ValueError for no keys, non-finite keys, an unknown kind.
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
    if chosen != "exact" and not scann_available():
        chosen = "exact"
    return Index(key_ME, kind=chosen, folder=None if folder is None else Path(folder))


def _first_of_equal_rows(key_ME: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first row of each group of equal rows, ascending; the group of each row)."""
    groups: dict[bytes, int] = {}
    group_M = np.array([groups.setdefault(row.tobytes(), len(groups)) for row in key_ME])
    return np.unique(group_M, return_index=True)[1], group_M
