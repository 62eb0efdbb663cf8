"""A corpus of passages from JSON lines, and exact search in it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence

from rapo_jax.io.jsonl import JsonObject, LineReport, read_jsonl, text_of
from rapo_jax.search.batches import Document, Hits, Search
from rapo_jax.search.exact import ExactIndex
from rapo_jax.search.ngram import NgramEncoder


class IdSet:
    """A set of ids by 64 bits of their hash: 12 to 24 bytes each, 36 while the set grows.

    The chance that any two of 21 million ids have the same hash is 1 in 80,000.
    """

    def __init__(self) -> None:
        self._slots, self._used = array("Q", bytes(8 << 10)), 0

    def add(self, name: str) -> bool:
        """Adds an id; returns whether it is new."""
        digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()
        value = int.from_bytes(digest, "little") or 1  # 0 marks a free slot
        new = _insert(self._slots, value)
        self._used += new
        if 3 * self._used > 2 * len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for each in filter(None, old):
                _insert(self._slots, each)
        return new


def _insert(slots: array[int], value: int) -> bool:
    mask = len(slots) - 1
    place = value & mask
    while (held := slots[place]) and held != value:
        place = (place + 1) & mask
    slots[place] = value
    return not held


def document_of(record: JsonObject) -> Document:
    """The passage of a line, {id, contents} or {id, title, text}; ValueError if it is none."""
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError("id is missing or no text and no whole number")
    if "contents" in record:
        return Document(str(name), text_of(record, "contents"))
    return Document(str(name), f'"{text_of(record, "title")}"\n{text_of(record, "text")}')


def read_documents(
    path: str, add: Callable[[str], bool], *, malformed: str, key: str, report: LineReport
) -> Iterator[Document]:
    """The documents of a corpus file, see `read_jsonl`; `add` returns whether an id is new."""

    def parse(record: JsonObject) -> Document:
        document = document_of(record)
        if not add(document.id):
            raise ValueError(f"duplicate id {document.id[:100]!r}")
        return document

    return read_jsonl(path, parse, malformed=malformed, key=key, report=report)


def read_corpus(path: str, *, malformed: str) -> tuple[list[Document], LineReport]:
    """The documents of a corpus file. Raises ValueError, see `read_jsonl`."""
    report, ids = LineReport(path), IdSet()
    documents = read_documents(path, ids.add, malformed=malformed, key="--malformed", report=report)
    return list(documents), report


def exact_search(documents: Sequence[Document], *, width: int) -> Search:
    """Exact search with the built-in n-gram encoder; for corpora of up to about a million."""
    texts = [document.contents for document in documents]
    index = ExactIndex(texts, NgramEncoder.fit(texts, width=width, orders=(1, 2)))

    def search(queries: Sequence[str], topk: int) -> list[Hits]:
        return [[(documents[i], x) for i, x in hits] for hits in index.search(queries, topk)]

    return search
