"""A corpus of passages from JSON lines, and exact search in it."""

from __future__ import annotations

from collections.abc import Sequence

from rapo_jax.io.jsonl import JsonObject, LineReport, read_jsonl, text_of
from rapo_jax.search.batches import Document, Hits, Search
from rapo_jax.search.exact import ExactIndex
from rapo_jax.search.ngram import NgramEncoder


def document_of(record: JsonObject) -> Document:
    """The passage of a line, {id, contents} or {id, title, text}; ValueError if it is none."""
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError("id is missing or no text and no whole number")
    if "contents" in record:
        return Document(str(name), text_of(record, "contents"))
    return Document(str(name), f'"{text_of(record, "title")}"\n{text_of(record, "text")}')


def read_corpus(path: str, *, malformed: str) -> tuple[list[Document], LineReport]:
    """The documents of a corpus file. Raises ValueError, see `read_jsonl`."""
    report = LineReport(path)
    known: set[str] = set()

    def parse(record: JsonObject) -> Document:
        document = document_of(record)
        if document.id in known:
            raise ValueError(f"duplicate id {document.id!r}")
        known.add(document.id)
        return document

    lines = read_jsonl(path, parse, malformed=malformed, key="--malformed", report=report)
    return list(lines), report


def exact_search(documents: Sequence[Document], *, width: int) -> Search:
    """Exact search with the built-in n-gram encoder; for corpora of up to about a million."""
    texts = [document.contents for document in documents]
    encode = NgramEncoder.fit(texts, width=width, orders=(1, 2))
    index = ExactIndex(texts, encode)

    def search(queries: Sequence[str], topk: int) -> list[Hits]:
        return [
            [(documents[i], similarity) for i, similarity in index.nearest(query_E, topk)]
            for query_E in encode(queries)
        ]

    return search
