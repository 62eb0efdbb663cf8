"""Search by inner product of sentence embeddings, over a list of passages or an index on disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from rapo_jax.search.batches import Search
from rapo_jax.search.exact import ExactIndex
from rapo_jax.search.passages import Fits, passage_of, render_passages
from rapo_jax.tools.observation import Observation, Tool

CACHED_QUERIES = 65_536


def local_search(
    documents: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    passages: int,
) -> Tool:
    """A tool that answers each query with its nearest `passages` documents, joined by ' ; '.

    `encode` maps n texts to unit rows, float32 [n, E]. Ties are broken by document order. A query
    is scored alone, so what it finds does not depend on the batch it stands in.
    """
    if passages < 1:
        raise ValueError(f"tools.search.passages={passages}: a search returns at least 1 passage")
    if not documents:
        raise ValueError("documents=[]: a search needs at least one document")
    index = ExactIndex(documents, encode)

    def find(queries: list[str]) -> list[str]:
        rows = np.asarray(encode(queries), dtype=np.float32)
        return [" ; ".join(documents[i] for i, _ in index.nearest(row, passages)) for row in rows]

    return remembering(find)


def index_search(index: Search, *, passages: int, fits: Fits) -> Tool:
    """A tool that answers each query with the `passages` best of an index, numbered, one a line;
    those that have no room are left out, see `render_passages`."""

    def find(queries: list[str]) -> list[str]:
        return [
            render_passages([passage_of(document.contents) for document, _ in hits], fits)
            for hits in index(queries, passages)
        ]

    return remembering(find)


def remembering(find: Callable[[list[str]], list[str]]) -> Tool:
    """A search tool: `find` is asked for the text of each query that was not asked before."""
    known: OrderedDict[str, str] = OrderedDict()
    lock = threading.Lock()

    def recall(queries: list[str]) -> dict[str, str]:
        with lock:
            hits = {query: known[query] for query in queries if query in known}
            for query in hits:
                known.move_to_end(query)
        return hits

    def search(queries: list[str]) -> list[Observation]:
        queries = [_clean(query) for query in queries]
        wanted = [query for query in dict.fromkeys(queries) if query]
        answers = recall(wanted)
        missing = [query for query in wanted if query not in answers]
        failure = ""
        if missing:
            try:
                found = dict(zip(missing, find(missing), strict=True))
            except Exception as error:  # a tool never raises: see Tool
                failure = f"error: search failed: {type(error).__name__}: {error}"
                found = {}
            answers |= found
            with lock:
                known.update(found)
                while len(known) > CACHED_QUERIES:
                    known.popitem(last=False)
        return [_observation(query, answers, failure) for query in queries]

    return search


def _observation(query: str, answers: dict[str, str], failure: str) -> Observation:
    if not query:
        return Observation("error: empty query", "empty")
    if query not in answers:
        return Observation(failure, "error")
    return Observation(answers[query], "ok")


def _clean(query: str) -> str:
    return " ".join(query.encode("utf-8", "replace").decode("utf-8").split())
