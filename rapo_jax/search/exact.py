"""Exact nearest neighbours among documents that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TIE_DECIMALS = 5
"""Similarities that agree to this many decimals are ties: float32 sums differ by less than that."""

Encode = Callable[[Sequence[str]], np.ndarray]
"""n texts -> unit rows, float32 [n, E]."""


class ExactIndex:
    """Nearest documents by exact inner product.

    A query is compared alone, so its hits do not depend on the other queries.
    """

    def __init__(self, documents: Sequence[str], encode: Encode) -> None:
        self._encode = encode
        document_ME = np.asarray(encode(list(documents)), dtype=np.float32)
        self._document_EM = np.ascontiguousarray(document_ME.T)

    def search(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """(document number, similarity) of each query's k nearest, ties in document order."""
        query_BE = np.asarray(self._encode(queries), dtype=np.float32)
        return [self._nearest(query_E, k) for query_E in query_BE]

    def _nearest(self, query_E: np.ndarray, k: int) -> list[tuple[int, float]]:
        # Most features of a short text are 0: of n-grams 99 %, which all that is left out costs.
        used = np.flatnonzero(query_E)
        similarity_M = np.round(query_E[used] @ self._document_EM[used], TIE_DECIMALS)
        k = min(k, len(similarity_M))
        floor = -np.partition(-similarity_M, k - 1)[k - 1]
        candidates = np.flatnonzero(similarity_M >= floor)
        best = candidates[np.argsort(-similarity_M[candidates], kind="stable")[:k]]
        return [(int(i), float(similarity_M[i])) for i in best]
