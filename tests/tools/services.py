"""Search services that a test's loopback server imitates, and the tool that calls them."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from rapo_jax.config import SearchSettings
from rapo_jax.tools.search_client import HttpSearch

NO_KEY = "HOME"
"""A variable that is always set, used as one that holds a key."""


def search(kind, url, *, passages=2, fits=lambda text: True, **changes):
    settings = {
        "kind": kind,
        "url": url,
        "index": "",
        "key_variable": "" if kind in ("retrieval", "searxng") else NO_KEY,
        "cache": "",
        "deadline_s": 10.0,
        "per_second": 0.0,
        "concurrency": 3,
    }
    return HttpSearch(SearchSettings(**(settings | changes)), passages=passages, fits=fits)


def retrieval(handler, body):
    """A retrieval server whose hits repeat the query."""
    hits = [
        [
            {"document": {"id": str(i), "contents": f'"{q}"\ntext {i}'}, "score": 1 - i}
            for i in (0, 1)
        ]
        for q in body["queries"]
    ]
    return 200, {"result": hits}


def query_of(handler, body):
    """The query of a web search, from the body or the address."""
    return body["q"] if body else parse_qs(urlsplit(handler.path).query)["q"][0]


SHAPES = {
    "bing": lambda pages: {
        "webPages": {"value": [{"name": t, "url": "u", "snippet": s} for t, s in pages]}
    },
    "serper": lambda pages: {
        "organic": [{"title": t, "link": "u", "snippet": s, "position": 1} for t, s in pages]
    },
    "searxng": lambda pages: {
        "results": [{"title": t, "url": "u", "content": s} for t, s in pages]
    },
}


def web(kind):
    def answer(handler, body):
        pages = [(f"about {query_of(handler, body)}", f"text {i}") for i in range(5)]
        return 200, SHAPES[kind](pages)

    return answer
