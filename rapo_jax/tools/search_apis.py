"""Search services by name: the request of each, and the reader of its response.

The readers take any JSON: items of another shape are skipped, a response of another shape is an
`HttpFailure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rapo_jax.io.files import Json
from rapo_jax.io.http import HttpFailure, JsonClient, bearer
from rapo_jax.search.passages import Passage, passage_of

Results = list[list[Passage]]
"""The passages of each query, the best first."""
Ask = Callable[[JsonClient, str, Sequence[str], int], Results]
"""(client, address, queries, passages of each) -> results."""


class Api(NamedTuple):
    """A service; `url` is its public address, '' if the user runs it."""

    ask: Ask
    url: str
    headers: Callable[[str], dict[str, str]]
    """API key -> the headers with it."""
    needs_key: bool
    batch: int
    """Queries in one request."""


def _retrieval(client: JsonClient, url: str, queries: Sequence[str], passages: int) -> Results:
    """A retrieval server with Search-R1's wire format.

    Scores are always requested: without them the published server fails on its own result.
    """
    address = url if url.endswith("/retrieve") else f"{url}/retrieve"
    body = {"queries": list(queries), "topk": passages, "return_scores": True}
    result = _list(client.post(address, body), "result")
    if len(result) != len(queries):
        raise HttpFailure("body", f"{len(result)} results for {len(queries)} queries")
    return [list(_documents(hits))[:passages] for hits in result]


def _documents(hits: Json) -> Iterator[Passage]:
    """Documents, {"contents"} or {"title", "text"}, alone or as {"document", "score"}."""
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


def _bing(client: JsonClient, url: str, queries: Sequence[str], passages: int) -> Results:
    """Bing's Web Search API v7, which other services still offer."""
    answer = client.get(url, {"q": queries[0], "count": passages})
    pages = answer.get("webPages") if isinstance(answer, Mapping) else None
    if pages is None and isinstance(answer, Mapping):
        if errors := answer.get("errors"):
            raise HttpFailure("refused", f"Bing reports {errors}", retry=False)
        return [[]]  # its response without hits
    return [_pages(_list(pages, "value"), "name", "snippet")[:passages]]


def _serper(client: JsonClient, url: str, queries: Sequence[str], passages: int) -> Results:
    answer = client.post(url, {"q": queries[0], "num": passages})
    return [_pages(_list(answer, "organic"), "title", "snippet")[:passages]]


def _searxng(client: JsonClient, url: str, queries: Sequence[str], passages: int) -> Results:
    """A SearXNG instance; it answers with status 403 unless its settings allow the json format."""
    address = url if url.endswith("/search") else f"{url}/search"
    answer = client.get(address, {"q": queries[0], "format": "json"})
    results = _list(answer, "results")
    if not results and (silent := answer.get("unresponsive_engines")):  # pairs of name and reason
        raise HttpFailure("refused", f"no results, and engines that failed: {silent}", retry=False)
    return [_pages(results, "title", "content")[:passages]]


def _list(answer: Json, name: str) -> list[Json]:
    items = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(items, list):
        raise HttpFailure("body", f"the answer has no list {name!r}")
    return items


def _pages(items: list[Json], title: str, text: str) -> list[Passage]:
    """The web pages that have a text; `title` and `text` are the names of their fields."""
    fields = [(item.get(title), item.get(text)) for item in items if isinstance(item, Mapping)]
    return [
        Passage(name if isinstance(name, str) else "", content)
        for name, content in fields
        if isinstance(content, str) and content.strip()
    ]


APIS: dict[str, Api] = {
    "retrieval": Api(_retrieval, "", bearer, needs_key=False, batch=64),
    "bing": Api(
        _bing,
        "https://api.bing.microsoft.com/v7.0/search",
        lambda key: {"Ocp-Apim-Subscription-Key": key} | bearer(key),  # resellers read the latter
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
    "searxng": Api(_searxng, "", bearer, needs_key=False, batch=1),
}
"""By the value of tools.search.kind."""
