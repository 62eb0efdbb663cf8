"""The search tool over HTTP: a retrieval server or a web-search API, with cache and rate limit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rapo_jax.config import SearchSettings
from rapo_jax.io.api_keys import mask, read_api_key
from rapo_jax.io.cache import DiskCache, cache_key
from rapo_jax.io.http import HttpFailure, JsonClient, Limits
from rapo_jax.search.passages import Fits, Line, Passage, numbered_line, render_passages
from rapo_jax.tools.failures import FailureLog
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.search import clean_query
from rapo_jax.tools.search_apis import APIS

ATTEMPTS = 3
BACKOFF_S = 0.5
MAX_ANSWER_BYTES = 8 << 20
MAX_QUERY_CHARS = 1000

Found = list[Passage] | Observation
"""Passages, or the observation of a failure."""
Request = Future[dict[str, Found]]
"""A running request; what it finds, by query."""

TIMED_OUT = Observation("error: search timed out", "timeout")


class HttpSearch:
    """A Tool over the service `settings.kind`, one of APIS; `passages` hits a query.

    A query that is being asked is not sent again: later callers wait for its answer, a failure
    too. Hits are kept in the cache and never asked for again; failures, and answers without a hit,
    are not kept: a service may find something later. The log has the whole error, without the key,
    and the observation a short one. `fits` bounds an observation and `line` writes a hit, see
    `render_passages`.

    Raises:
        ValueError: no address, or no key where one is needed.
    """

    def __init__(
        self, settings: SearchSettings, *, passages: int, fits: Fits, line: Line = numbered_line
    ) -> None:
        self._api = APIS[settings.kind]
        self._url = (settings.url or self._api.url).rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise ValueError(
                f"tools.search.url={mask(settings.url)!r}: tools.search.kind={settings.kind!r} "
                "needs the address of a server, such as http://127.0.0.1:8000"
            )
        key = read_api_key(settings.key_variable, key="tools.search.key_variable")
        if self._api.needs_key and not key:
            raise ValueError(
                f"tools.search.key_variable='': tools.search.kind={settings.kind!r} needs the name "
                "of an environment variable that holds its key"
            )
        self._kind, self._passages = settings.kind, passages
        self._fits, self._line = fits, line
        self._rate = RateLimit(settings.per_second)
        self._deadline_s = settings.deadline_s
        kept = settings.cache
        self._cache = DiskCache(kept, key="tools.search.cache") if kept else None
        self._client = JsonClient(
            Limits(settings.deadline_s, ATTEMPTS, BACKOFF_S, MAX_ANSWER_BYTES),
            key=key,
            headers=self._api.headers,
            connections=settings.concurrency,
        )
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="http_search")
        self._log_failure = FailureLog("search")
        self._lock = threading.Lock()
        self._running: dict[str, Request] = {}

    def __call__(self, queries: list[str]) -> list[Observation]:
        cleaned = [_clean(query) for query in queries]
        answers: dict[str, Found] = {}
        try:
            known, asked = self._begin([query for query in dict.fromkeys(cleaned) if query])
            answers |= known
            answers |= {query: request.result()[query] for query, request in asked.items()}
        except Exception as error:  # a tool never raises: see Tool
            self._log_failure(self._client.mask(f"{type(error).__name__}: {error}"))
        return [self._observation(query, answers) for query in cleaned]

    def _begin(self, queries: Sequence[str]) -> tuple[dict[str, Found], dict[str, Request]]:
        """What the cache holds, and the running requests of the other queries."""
        with self._lock:
            asked = {query: self._running[query] for query in queries if query in self._running}
            known: dict[str, Found] = {
                query: found
                for query in queries
                if query not in asked and (found := self._cached(query)) is not None
            }
            missing = [query for query in queries if query not in asked and query not in known]
            for start in range(0, len(missing), self._api.batch):
                group = missing[start : start + self._api.batch]
                new = dict.fromkeys(group, self._threads.submit(self._answers, group))
                self._running |= new
                asked |= new
        return known, asked

    def _answers(self, group: Sequence[str]) -> dict[str, Found]:
        try:
            return dict(zip(group, self._ask(group), strict=True))
        finally:
            with self._lock:
                for query in group:
                    del self._running[query]

    def check(self) -> None:
        """Sends a test query; raises ValueError if the service does not answer.

        Not for web searches: a query costs money.
        """
        try:
            self._api.ask(self._client, self._url, ["check"], 1)
        except HttpFailure as failure:
            raise ValueError(
                f"tools.search.url={mask(self._url)!r}: no {self._kind} service answers "
                f"({failure}); start it, or fix the address"
            ) from None

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()
        if self._cache:
            self._cache.close()

    def _observation(self, query: str, answers: Mapping[str, Found]) -> Observation:
        if not query:
            return Observation("error: empty query", "empty")
        answer = answers.get(query, Observation("error: search failed", "error"))
        if isinstance(answer, Observation):
            return answer
        if not answer:
            return Observation("nothing found", "empty")
        return Observation(render_passages(answer, self._fits, self._line), "ok")

    def _ask(self, group: Sequence[str]) -> Sequence[Found]:
        """What one request finds for each of its queries."""
        if not self._rate.wait(self._deadline_s):
            self._log_failure(
                "tools.search.per_second leaves no room within tools.search.deadline_s"
            )
            return [TIMED_OUT] * len(group)
        try:
            answers = self._api.ask(self._client, self._url, group, self._passages)
        except HttpFailure as failure:
            self._log_failure(self._client.mask(str(failure)))
            status = f", status {failure.status}" if failure.status else ""
            text = f"error: search failed ({failure.kind}{status})"
            timed_out = failure.kind == "timeout"
            return [TIMED_OUT if timed_out else Observation(text, "error")] * len(group)
        for query, passages in zip(group, answers, strict=True):
            if self._cache and passages:
                self._cache.put(self._cache_key(query), json.dumps(passages))
        return answers

    def _cached(self, query: str) -> list[Passage] | None:
        text = self._cache.get(self._cache_key(query)) if self._cache else None
        try:
            passages = [Passage(*passage) for passage in json.loads(text or "null")]
        except (ValueError, TypeError, RecursionError):  # a damaged row
            return None
        return passages if all(isinstance(t, str) for p in passages for t in p) else None

    def _cache_key(self, query: str) -> str:
        return cache_key(self._kind, self._url, self._passages, query)


class RateLimit:
    """Spaces the calls of all threads evenly; `per_second` 0 is no limit."""

    def __init__(self, per_second: float) -> None:
        self._pause_s = 1 / per_second if per_second else 0.0
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, at_most_s: float) -> bool:
        """Sleeps until this call's turn; returns False at once if that takes over `at_most_s`."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            if turn - now > at_most_s:
                return False
            self._next = turn + self._pause_s
        time.sleep(turn - now)
        return True


def _clean(query: str) -> str:
    return clean_query(query[: 4 * MAX_QUERY_CHARS])[:MAX_QUERY_CHARS]
