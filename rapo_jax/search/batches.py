"""Micro-batching: queries that arrive together in several threads are searched together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_BATCH = 256
WAIT_S = 0.005
"""How long the first query of a batch waits for others."""


class Document(NamedTuple):
    id: str
    contents: str


Hits = list[tuple[Document, float]]
Search = Callable[[Sequence[str], int], list[Hits]]
"""(queries, number of hits) -> hits of each query, the best first."""


class Batcher:
    """Gathers queries of several threads and searches them together, in a thread of its own."""

    def __init__(self, search: Search, *, max_batch: int = MAX_BATCH, wait_s: float = WAIT_S):
        self._search = search
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._waiting: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="search_batches")
        self._thread.start()

    def __call__(self, queries: Sequence[str], topk: int) -> list[Hits]:
        """The hits of each query; raises what the search raised for its batch."""
        asked = _Asked(list(queries), topk)
        self._waiting.put(asked)
        while not asked.done.wait(timeout=1.0):
            if not self._thread.is_alive():
                raise RuntimeError("the search is closed")
        if asked.error is not None:
            raise asked.error
        return asked.hits

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, more = self._gather(first)
            try:
                self._answer(batch)
            except Exception as error:  # must not end the thread that all others wait for
                for asked in batch:
                    asked.error = error
            for asked in batch:
                asked.done.set()
            if not more:
                return

    def _answer(self, batch: Sequence[_Asked]) -> None:
        queries = [query for asked in batch for query in asked.queries]
        hits = self._search(queries, max(asked.topk for asked in batch))
        if len(hits) != len(queries):
            raise RuntimeError(f"the search gave {len(hits)} results for {len(queries)} queries")
        own = iter(hits)
        for asked in batch:
            asked.hits = [next(own)[: asked.topk] for _ in asked.queries]

    def _gather(self, first: _Asked) -> tuple[list[_Asked], bool]:
        """(what arrived within the wait, whether to go on afterwards)."""
        batch, end = [first], time.monotonic() + self._wait_s
        while sum(len(asked.queries) for asked in batch) < self._max_batch:
            try:
                asked = self._waiting.get(timeout=max(end - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if asked is None:
                return batch, False
            batch.append(asked)
        return batch, True


class _Asked:
    """One request on its way through the batcher."""

    def __init__(self, queries: list[str], topk: int) -> None:
        self.queries = queries
        self.topk = topk
        self.done = threading.Event()
        self.hits: list[Hits] = []
        self.error: Exception | None = None
