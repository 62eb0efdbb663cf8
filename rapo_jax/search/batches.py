"""Micro-batching: queries of several threads that arrive together are searched together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


@dataclass
class _Request:
    queries: list[str]
    topk: int
    done: threading.Event = field(default_factory=threading.Event)
    hits: list[Hits] = field(default_factory=list)
    error: Exception | None = None


class Batcher:
    """Gathers queries of several threads and searches them together, in a separate thread."""

    def __init__(self, search: Search, *, max_batch: int = MAX_BATCH, wait_s: float = WAIT_S):
        self._search = search
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="search_batches")
        self._thread.start()

    def __call__(self, queries: Sequence[str], topk: int) -> list[Hits]:
        """The hits of each query; raises the error of the search of its batch."""
        request = _Request(list(queries), topk)
        self._waiting.put(request)
        while not request.done.wait(timeout=1.0):
            if not self._thread.is_alive():
                raise RuntimeError("the search is closed")
        if request.error is not None:
            raise request.error
        return request.hits

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, closed = self._gather(first)
            try:
                self._answer(batch)
            except Exception as error:  # must not end the thread that all others wait for
                for request in batch:
                    request.error = error
            for request in batch:
                request.done.set()
            if closed:
                return

    def _answer(self, batch: Sequence[_Request]) -> None:
        queries = [query for request in batch for query in request.queries]
        hits = self._search(queries, max(request.topk for request in batch))
        if len(hits) != len(queries):
            raise RuntimeError(f"the search gave {len(hits)} results for {len(queries)} queries")
        remaining = iter(hits)
        for request in batch:
            request.hits = [next(remaining)[: request.topk] for _ in request.queries]

    def _gather(self, first: _Request) -> tuple[list[_Request], bool]:
        """(the requests that arrive within the wait, whether the batcher was closed)."""
        batch, end = [first], time.monotonic() + self._wait_s
        while sum(len(request.queries) for request in batch) < self._max_batch:
            try:
                request = self._waiting.get(timeout=max(end - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if request is None:
                return batch, True
            batch.append(request)
        return batch, False
