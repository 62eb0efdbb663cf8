"""Search services by name: how each is asked, and what its answers look like.

Every reader is total on any JSON: items of another shape are passed over, an answer of another
shape altogether is an `HttpFailure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rapo_jax.io.http import HttpFailure, JsonClient
from rapo_jax.search.passages import Passage, passage_of

Ask = Callable[[JsonClient, str, Sequence[str], int], list[list[Passage]]]
"""(client, address, queries, passages of each) -> passages of each query, the best first."""


class Api(NamedTuple):
    """A service; `url` is its public address, '' where the user runs it."""

    ask: Ask
    url: str
    headers: Callable[[str], dict[str, str]]
    """Key -> the headers that carry it."""
    needs_key: bool
    batch: int
    """Queries of one request."""


def _retrieval(
    client: JsonClient, url: str, queries: Sequence[str], passages: int
) -> list[list[Passage]]:
    """A retrieval server that speaks Search-R1's wire format.

    Scores are always asked for: without them the published server fails to unpack its own answer.
    """
    address = url if url.endswith("/retrieve") else f"{url}/retrieve"
    body = {"queries": list(queries), "topk": passages, "return_scores": True}
    found = _field(client.post(address, body), "result")
    if len(found) != len(queries):
        raise HttpFailure("body", f"{len(found)} results for {len(queries)} queries")
    return [list(_documents(hits))[:passages] for hits in found]


def _documents(hits: Any) -> Iterator[Passage]:
    """Documents with or without their scores around them: {"contents"} or {"title", "text"}."""
    for hit in hits if isinstance(hits, list) else []:
        document = hit.get("document", hit) if isinstance(hit, Mapping) else None
        if not isinstance(document, Mapping):
            continue
        contents, text = document.get("contents"), document.get("text")
        if isinstance(contents, str) and contents.strip():
            yield passage_of(contents)
        elif isinstance(text, str) and text.strip():
            title = document.get("title")
            yield Passage(title if isinstance(title, str) else "", text)


def _bing(
    client: JsonClient, url: str, queries: Sequence[str], passages: int
) -> list[list[Passage]]:
    """Bing's Web Search API v7, which others still offer in this shape."""
    answer = client.get(url, {"q": queries[0], "count": passages})
    pages = answer.get("webPages") if isinstance(answer, Mapping) else None
    if pages is None and isinstance(answer, Mapping):
        return [[]]  # how it says that nothing was found
    return [_pages(_field(pages, "value"), "name", "snippet")[:passages]]


def _serper(
    client: JsonClient, url: str, queries: Sequence[str], passages: int
) -> list[list[Passage]]:
    answer = client.post(url, {"q": queries[0], "num": passages})
    return [_pages(_field(answer, "organic"), "title", "snippet")[:passages]]


def _searxng(
    client: JsonClient, url: str, queries: Sequence[str], passages: int
) -> list[list[Passage]]:
    """A SearXNG instance; it answers with status 403 unless its settings allow the json format."""
    address = url if url.endswith("/search") else f"{url}/search"
    answer = client.get(address, {"q": queries[0], "format": "json"})
    return [_pages(_field(answer, "results"), "title", "content")[:passages]]


def _field(answer: Any, name: str) -> list[Any]:
    found = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(found, list):
        raise HttpFailure("body", f"the answer has no list {name!r}")
    return found


def _pages(items: list[Any], title: str, text: str) -> list[Passage]:
    """Web pages that say anything."""
    found = []
    for item in items:
        if isinstance(item, Mapping):
            parts = (item.get(title), item.get(text))
            passage = Passage(*(part if isinstance(part, str) else "" for part in parts))
            if passage.text.strip():
                found.append(passage)
    return found


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


APIS: dict[str, Api] = {
    "retrieval": Api(_retrieval, "", _bearer, needs_key=False, batch=64),
    "bing": Api(
        _bing,
        "https://api.bing.microsoft.com/v7.0/search",
        lambda key: {"Ocp-Apim-Subscription-Key": key} | _bearer(key),  # resellers read the latter
        needs_key=True,
        batch=1,
    ),
    "serper": Api(
        _serper,
        "https://google.serper.dev/search",
        lambda key: {"X-API-KEY": key},
        needs_key=True,
        batch=1,
    ),
    "searxng": Api(_searxng, "", _bearer, needs_key=False, batch=1),
}
"""Beside the local search, by the value of tools.search.kind."""
