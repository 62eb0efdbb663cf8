"""Corpora of passages: both layouts, malformed lines, duplicate ids."""

from __future__ import annotations

import gzip
import json

import pytest

from rapo_jax.search.batches import Document
from rapo_jax.search.corpus import read_corpus


def test_a_corpus_of_either_layout_is_read_and_bad_lines_are_counted(tmp_path):
    lines = [
        {"id": "1", "contents": '"Ada"\ntext'},
        {"id": 2, "title": "Kavel", "text": "text"},
        {"id": "2", "contents": "again"},
        {"contents": "nameless"},
        {"id": "3", "title": "no text"},
        {"id": "4", "contents": 3},
        {"id": "5", "text": "untitled"},
        {"id": "6", "title": "", "text": "blank"},
    ]
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    documents, report = read_corpus(str(path), malformed="skip")
    assert documents == [
        Document("1", '"Ada"\ntext'), Document("2", '"Kavel"\ntext'),
        Document("5", '""\nuntitled'), Document("6", '""\nblank'),
    ]  # fmt: skip
    assert [number for number, _ in report.malformed_lines] == [3, 4, 5, 6]
    assert report.malformed_lines[0].problem == "duplicate id '2'"
    with pytest.raises(ValueError, match="line 3: duplicate id '2'; .*--malformed='skip'"):
        read_corpus(str(path), malformed="fail")
