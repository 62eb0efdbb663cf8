"""Retrieval of the nearest step trace for a batch of states (paper 4.1.2, Algorithm 1)."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rapo_jax.buffer.buffer import StepTraceBuffer
from rapo_jax.buffer.keys import key_text
from rapo_jax.search.nearest import make_index


class Hit(NamedTuple):
    """A retrieved step trace. A miss has row -1 and the value '': nothing is retrieved."""

    row: int
    """Its row in the buffer."""
    similarity: float
    value: str
    origin: str
    same_question: bool


MISS = Hit(-1, float("nan"), "", "", False)

_FETCH = 64
"""Neighbours that are checked before the whole buffer is searched."""


class Retriever:
    """Buffer and index. Keys of states are made as those of the buffer (mask, length).

    `kind` and `folder` as for `make_index`. Safe to call from concurrent threads.
    """

    def __init__(
        self, buffer: StepTraceBuffer, *, kind: str, folder: str | Path | None = None
    ) -> None:
        self.buffer = buffer
        self.index = make_index(buffer.key_ME, kind=kind, folder=folder)
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._similarities: list[float] = []
        self._lock = threading.Lock()  # shards call from concurrent threads

    def key_texts(self, questions: Sequence[str], histories: Sequence[str]) -> list[str]:
        """Text of each row's S_<t; the question alone for a buffer of whole trajectories."""
        manifest = self.buffer.manifest
        whole = manifest["unit"] == "trajectory"
        return [
            key_text(
                question,
                "" if whole else history,
                mask=manifest["mask"],
                max_chars=manifest["max_chars"],
            )
            for question, history in zip(questions, histories, strict=True)
        ]

    def nearest(
        self,
        key_BE: np.ndarray,
        *,
        question_ids: Sequence[str] | None = None,
        exclude_same_question: bool = False,
        pick_B: np.ndarray | None = None,
        origins: Sequence[str] = (),
    ) -> list[Hit]:
        """One `Hit` for each row: the step trace of the nearest key by inner product.

        `key_BE`: embeddings [B, E]; a miss is `MISS`. `pick_B[b]` in [0, 1) replaces the nearest by
        trace floor(pick * M), uniform over the traces that row b may get (retrieval noise); a
        negative one asks for the nearest. With `exclude_same_question` row b gets no trace of
        question `question_ids[b]`; where the buffer has no others it is a miss (counted as
        `excluded`). A state that is not finite is a miss too. Unknown ids, '', are never the same
        question.
        """
        key_BE = np.asarray(key_BE, np.float32)
        unknown = [""] * len(key_BE)
        ids = unknown if question_ids is None else question_ids
        excluded = ids if exclude_same_question else unknown
        pick_B = np.full(len(key_BE), -1.0) if pick_B is None else np.asarray(pick_B, np.float64)
        row_B = self._of_origin(key_BE, origins) if origins else self._nearest_allowed(key_BE, excluded)
        counts: defaultdict[str, float] = defaultdict(float, queries=len(key_BE))
        hits: list[Hit] = []
        for b, row in enumerate(row_B):
            if pick_B[b] >= 0:
                row = self._random_allowed(pick_B[b], excluded[b])
                counts["random"] += 1
            if row < 0:
                finite = np.isfinite(key_BE[b]).all()
                counts["excluded" if finite else "not_finite"] += 1
                hits.append(MISS)
                continue
            step_trace = self.buffer.step_traces[row]
            same = ids[b] != "" and ids[b] == step_trace.question_id
            similarity = float((self.buffer.key_ME[row].astype(np.float64) * key_BE[b]).sum())
            hits.append(Hit(int(row), similarity, step_trace.value, step_trace.origin, same))
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
        return hits

    def count(self, given: Sequence[Hit]) -> None:
        """Counts the hits that were given to rows; a row may have had no room for others."""
        with self._lock:
            for hit in given:
                self._counts["hits"] += 1
                self._counts[f"origin/{hit.origin}"] += 1
                self._counts["same_question"] += hit.same_question
            self._similarities += [x.similarity for x in given if np.isfinite(x.similarity)]

    def take_counts(self) -> dict[str, float]:
        """Counts since the last call, for the metrics: queries, hits given, misses by reason.

        `origin/NAME` are the hits of each origin that the buffer has. The sum of similarities does
        not depend on the order in which calls arrived.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
            similarities, self._similarities = self._similarities, []
        names = ["queries", "hits", "random", "same_question", "excluded", "not_finite"]
        names += [f"origin/{name}" for name in self.buffer.manifest["traces_by_origin"]]
        taken = {name: counts[name] for name in names}
        return taken | {"similarity_sum": math.fsum(similarities)}

    def _nearest_allowed(self, key_BE: np.ndarray, excluded: Sequence[str]) -> np.ndarray:
        """Nearest trace [B] that is not of the row's excluded question, -1 where there is none."""
        row_B, _ = self.index.search(key_BE)
        finite_B = np.isfinite(key_BE).all(axis=1)
        wrong = [
            b
            for b, row in enumerate(row_B)
            if finite_B[b] and (row < 0 or self._is_of(row, excluded[b]))
        ]
        if not wrong:
            return row_B
        neighbour_bn, _ = self.index.search_many(key_BE[wrong], min(_FETCH, self.index.size))
        for b, neighbour_n in zip(wrong, neighbour_bn, strict=True):
            allowed = (row for row in neighbour_n if row >= 0 and not self._is_of(row, excluded[b]))
            row_B[b] = next(allowed, -1)
            if row_B[b] < 0:  # all of these are of the excluded question: look at every trace
                row_B[b] = self._scan(key_BE[b], excluded[b])
        return row_B

    def _of_origin(self, key_BE: np.ndarray, origins: Sequence[str]) -> np.ndarray:
        origin_M = np.array([trace.origin for trace in self.buffer.step_traces])
        row_B = np.full(len(key_BE), -1)
        for name in set(origins):
            row_N = np.flatnonzero(origin_M == name)
            for b in [b for b, other in enumerate(origins) if other == name]:
                row_B[b] = row_N[int(np.argmax(self.buffer.key_ME[row_N] @ key_BE[b]))]
        return row_B

    def _scan(self, key_E: np.ndarray, excluded: str) -> int:
        score_M = self.buffer.key_ME @ key_E
        for row in range(len(score_M)):
            if self._is_of(row, excluded):
                score_M[row] = -np.inf
        best = int(np.argmax(score_M))
        return best if np.isfinite(score_M[best]) else -1

    def _random_allowed(self, pick: float, excluded: str) -> int:
        """Trace floor(pick * count) of those not of the excluded question, -1 if there is none."""
        allowed: Sequence[int] = range(self.index.size)
        if excluded:
            allowed = [row for row in allowed if not self._is_of(row, excluded)]
        if not allowed:
            return -1
        return allowed[min(int(pick * len(allowed)), len(allowed) - 1)]  # float32 rounds up to 1

    def _is_of(self, row: int, question_id: str) -> bool:
        if row < 0 or not question_id:
            return False
        return self.buffer.step_traces[row].question_id == question_id
