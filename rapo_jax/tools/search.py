"""Search tools without a network: in a list of documents, or in an index on disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from rapo_jax.search.batches import Search
from rapo_jax.search.exact import Encode, ExactIndex
from rapo_jax.search.passages import Fits, Line, numbered_line, passage_of, render_passages
from rapo_jax.tools.observation import Observation, Tool

CACHED_QUERIES = 65_536


def local_search(documents: Sequence[str], encode: Encode, *, passages: int) -> Tool:
    """A tool that answers each query with its nearest `passages` documents, joined by ' ; '."""
    if passages < 1:
        raise ValueError(f"tools.passages={passages}: must be at least 1")
    if not documents:
        raise ValueError("documents=[]: a search needs at least one document")
    index = ExactIndex(documents, encode)

    def find(queries: list[str]) -> list[str]:
        results = index.search(queries, passages)
        return [" ; ".join(documents[i] for i, _ in hits) for hits in results]

    return CachedSearch(find)


def index_search(index: Search, *, passages: int, fits: Fits, line: Line = numbered_line) -> Tool:
    """A tool that answers each query with its best `passages` in an index (`render_passages`)."""

    def find(queries: list[str]) -> list[str]:
        return [
            render_passages([passage_of(document.contents) for document, _ in hits], fits, line)
            for hits in index(queries, passages)
        ]

    return CachedSearch(find)


class CachedSearch:
    """A search tool over `find` (queries -> texts), which keeps the texts of the last queries."""

    immediate = True

    def __init__(self, find: Callable[[list[str]], list[str]]) -> None:
        self._find = find
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, queries: list[str]) -> list[Observation]:
        queries = [clean_query(query) for query in queries]
        wanted = [query for query in dict.fromkeys(queries) if query]
        known = self._known
        with self._lock:
            answers = {query: known[query] for query in wanted if query in known}
            for query in answers:
                known.move_to_end(query)
        missing = [query for query in wanted if query not in answers]
        failure = ""
        if missing:
            try:
                new = dict(zip(missing, self._find(missing), strict=True))
            except Exception as error:  # a tool never raises: see Tool
                failure = f"error: search failed: {type(error).__name__}: {error}"
                new = {}
            answers |= new
            with self._lock:
                known.update(new)
                while len(known) > CACHED_QUERIES:
                    known.popitem(last=False)
        return [_observation(query, answers, failure) for query in queries]


def _observation(query: str, answers: dict[str, str], failure: str) -> Observation:
    if not query:
        return Observation("error: empty query", "empty")
    if query not in answers:
        return Observation(failure, "error")
    return Observation(answers[query], "ok")


def clean_query(query: str) -> str:
    """The query as valid UTF-8 on one line."""
    return " ".join(query.encode("utf-8", "replace").decode("utf-8").split())
