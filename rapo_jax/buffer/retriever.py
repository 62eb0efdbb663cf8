"""Retrieval of the nearest step trace for a batch of states (paper 4.1.2, Algorithm 1)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rapo_jax.buffer.buffer import Encoder, StepTraceBuffer
from rapo_jax.buffer.keys import key_text
from rapo_jax.search.nearest import make_index


class Hit(NamedTuple):
    """A retrieved trace. A miss has index -1 and the value '': retrieve nothing for that row."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    similarity: float
    value: str
    origin: str
    same_question: bool


MISS = Hit(-1, float("nan"), "", "", False)

_FETCH = 64


class Retriever:
    """Buffer + encoder + index. Keys are made exactly as the buffer's own (its mask and length).

    `kind` and `folder` as for `make_index`. Safe to call from concurrent threads.
    """

    def __init__(
        self,
        buffer: StepTraceBuffer,
        *,
        encode: Encoder,
        kind: str,
        folder: str | Path | None = None,
    ) -> None:
        self.buffer = buffer
        self.index = make_index(buffer.key_ME, kind=kind, folder=folder)
        self._encode = encode
        self._counts: defaultdict[str, float] = defaultdict(float)
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

    def keys(self, questions: Sequence[str], histories: Sequence[str]) -> np.ndarray:
        """Embedded states, [B, E] float32."""
        return self._encode(self.key_texts(questions, histories))

    def nearest(
        self,
        key_BE: np.ndarray,
        *,
        question_ids: Sequence[str] | None = None,
        exclude_question_ids: Sequence[str] | None = None,
        pick_B: np.ndarray | None = None,
    ) -> list[Hit]:
        """The trace whose key is nearest to each state.

        `pick_B[b]` in [0, 1) replaces the nearest by trace floor(pick * M), uniform over the traces
        that the row may get (retrieval noise); a negative one asks for the nearest.
        `exclude_question_ids[b]` is a question whose traces row b may not get; where the buffer has
        no others the row misses (counted as `excluded`). A state that is not finite misses too.
        `question_ids` (default: the excluded ones) fill `Hit.same_question`. Unknown ids, '', are
        never the same.
        """
        key_BE = np.asarray(key_BE, np.float32)
        own = question_ids if question_ids is not None else exclude_question_ids
        barred = exclude_question_ids if exclude_question_ids is not None else [""] * len(key_BE)
        pick_B = np.full(len(key_BE), -1.0) if pick_B is None else np.asarray(pick_B, np.float64)
        index_B = self._nearest_allowed(key_BE, barred)
        counts: defaultdict[str, float] = defaultdict(float, queries=len(key_BE))
        hits = []
        for b, index in enumerate(index_B):
            if pick_B[b] >= 0:
                index = self._random_allowed(pick_B[b], barred[b])
                counts["random"] += 1
            if index < 0:
                finite = np.isfinite(key_BE[b]).all()
                counts["excluded" if finite else "not_finite"] += 1
                hits.append(MISS)
                continue
            item = self.buffer.items[index]
            same = own is not None and own[b] != "" and own[b] == item.question_id
            similarity = float((self.buffer.key_ME[index].astype(np.float64) * key_BE[b]).sum())
            hits.append(Hit(int(index), similarity, item.value, item.origin, same))
            counts["hits"] += 1
            counts[f"origin/{item.origin}"] += 1
            counts["same_question"] += same
            if np.isfinite(similarity):
                counts["similarity_sum"] += similarity
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
        return hits

    def take_counts(self) -> dict[str, float]:
        """Counts since the last call, for the metrics: queries, hits, random, misses by reason.

        `origin/NAME` are the hits of each origin that the buffer has.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
        names = ["queries", "hits", "random", "same_question", "excluded", "not_finite"]
        names += [f"origin/{name}" for name in self.buffer.manifest["traces_by_origin"]]
        taken = {name: counts[name] for name in names}
        taken["similarity_mean"] = counts["similarity_sum"] / max(1, counts["hits"])
        return taken

    def _nearest_allowed(self, key_BE: np.ndarray, barred: Sequence[str]) -> np.ndarray:
        """Nearest trace of each row that is not of its barred question, -1 where there is none."""
        index_B, _ = self.index.search(key_BE)
        finite_B = np.isfinite(key_BE).all(axis=1)
        wrong = [
            b
            for b, i in enumerate(index_B)
            if finite_B[b] and (i < 0 or self._is_barred(i, barred[b]))
        ]
        if not wrong:
            return index_B
        found_bn, _ = self.index.search_many(key_BE[wrong], min(_FETCH, self.index.size))
        for b, found_n in zip(wrong, found_bn, strict=True):
            allowed = (i for i in found_n if i >= 0 and not self._is_barred(i, barred[b]))
            index_B[b] = next(allowed, -1)
            if index_B[b] < 0:  # its own question holds all of these: look at every trace
                index_B[b] = self._scan(key_BE[b], barred[b])
        return index_B

    def _scan(self, key_E: np.ndarray, barred: str) -> int:
        score_M = self.buffer.key_ME @ key_E
        for i, item in enumerate(self.buffer.items):
            if barred and item.question_id == barred:
                score_M[i] = -np.inf
        best = int(np.argmax(score_M))
        return best if np.isfinite(score_M[best]) else -1

    def _random_allowed(self, pick: float, barred: str) -> int:
        """Trace floor(pick * count) of those that are not of the barred question, -1 if none is."""
        allowed: Sequence[int] = range(self.index.size)
        if barred:
            allowed = [i for i in allowed if not self._is_barred(i, barred)]
        if not allowed:
            return -1
        return allowed[min(int(pick * len(allowed)), len(allowed) - 1)]  # float32 rounds up to 1

    def _is_barred(self, index: int, barred: str) -> bool:
        return index >= 0 and barred != "" and self.buffer.items[index].question_id == barred
