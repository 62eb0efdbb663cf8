"""Exact nearest neighbours among documents that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TIE_DECIMALS = 5
"""Similarities that agree to this many decimals are ties: float32 sums differ by less than that."""


class ExactIndex:
    """Nearest documents by exact inner product; `encode` maps n texts to float32 `[n, E]`."""

    def __init__(
        self, documents: Sequence[str], encode: Callable[[Sequence[str]], np.ndarray]
    ) -> None:
        self._document_ME = np.ascontiguousarray(encode(list(documents)), dtype=np.float32)

    def nearest(self, query_E: np.ndarray, k: int) -> list[tuple[int, float]]:
        """(document number, similarity) of the k nearest, best first, ties in document order."""
        similarity_M = np.round(self._document_ME @ query_E, TIE_DECIMALS)
        k = min(k, len(similarity_M))
        floor = -np.partition(-similarity_M, k - 1)[k - 1]
        candidates = np.flatnonzero(similarity_M >= floor)
        best = candidates[np.argsort(-similarity_M[candidates], kind="stable")[:k]]
        return [(int(i), float(similarity_M[i])) for i in best]
