"""A corpus of passages from JSON lines, and exact search in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from rapo_jax.io.jsonl import JsonObject, LineReport, read_jsonl, text_of
from rapo_jax.search.batches import Document, Hits, Search
from rapo_jax.search.exact import ExactIndex
from rapo_jax.search.ngram import NgramEncoder


def document_of(record: JsonObject) -> Document:
    """The passage of a line, {id, contents} or {id, title, text}; ValueError if it is none.

    The title may be blank or missing.
    """
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError("id is missing or no text and no whole number")
    if "contents" in record:
        return Document(str(name), text_of(record, "contents"))
    title = text_of(record, "title") if record.get("title") else ""
    return Document(str(name), f'"{title}"\n{text_of(record, "text")}')


def read_documents(
    path: str, *, malformed: str, key: str, report: LineReport
) -> Iterator[Document]:
    """The documents of a corpus file, see `read_jsonl`; one with a repeated id is malformed.

    Ids are kept as 64 bits of their hash. The chance that any two of 21 million ids have the same
    is 1 in 80,000.
    """
    seen: set[bytes] = set()

    def parse(record: JsonObject) -> Document:
        document = document_of(record)
        digest = hashlib.blake2b(document.id.encode("utf-8"), digest_size=8).digest()
        if digest in seen:
            raise ValueError(f"duplicate id {document.id[:100]!r}")
        seen.add(digest)
        return document

    return read_jsonl(path, parse, malformed=malformed, key=key, report=report)


def read_corpus(path: str, *, malformed: str) -> tuple[list[Document], LineReport]:
    """The documents of a corpus file. Raises ValueError, see `read_jsonl`."""
    report = LineReport(path)
    documents = read_documents(path, malformed=malformed, key="--malformed", report=report)
    return list(documents), report


def exact_search(documents: Sequence[Document], *, width: int) -> Search:
    """Exact search with the built-in n-gram encoder; for corpora of up to about a million."""
    texts = [document.contents for document in documents]
    index = ExactIndex(texts, NgramEncoder.fit(texts, width=width, orders=(1, 2)))

    def search(queries: Sequence[str], topk: int) -> list[Hits]:
        return [[(documents[i], x) for i, x in hits] for hits in index.search(queries, topk)]

    return search
