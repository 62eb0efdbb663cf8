"""Local search: exact, deterministic, and never an exception."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.tools.observation import Observation
from rapo_jax.tools.search import local_search

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DOCUMENTS = ["apple pie", "banana split", "cherry cake", "banana split", "zzz"]


def encode_letters(texts):
    rows = np.array([[text.count(c) for c in LETTERS] for text in texts], np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)


def test_the_nearest_passages_come_first_and_ties_in_document_order():
    search = local_search(DOCUMENTS, encode_letters, passages=3)
    (observation,) = search(["banana split"])
    first, second, _ = observation.text.split(" ; ")
    assert (first, second, observation.outcome) == ("banana split", "banana split", "ok")
    similarity_M = encode_letters(DOCUMENTS) @ encode_letters(["a pie"])[0]
    best = sorted(range(len(DOCUMENTS)), key=lambda i: (-round(float(similarity_M[i]), 5), i))[:3]
    assert search(["a pie"])[0].text == " ; ".join(DOCUMENTS[i] for i in best)


def test_documents_that_all_tie_keep_their_order():
    numbered = [f"{i} a" for i in range(50)]
    search = local_search(numbered, encode_letters, passages=3)
    assert search(["a"])[0].text == "0 a ; 1 a ; 2 a"


def test_more_passages_than_documents_gives_all_of_them():
    search = local_search(["one", "two"], encode_letters, passages=9)
    assert sorted(search(["one"])[0].text.split(" ; ")) == ["one", "two"]


def test_an_empty_query_is_an_error_observation():
    search = local_search(DOCUMENTS, encode_letters, passages=1)
    assert search(["", " \n", "apple"])[:2] == [Observation("error: empty query", "empty")] * 2


def test_a_repeated_query_is_not_encoded_again_in_its_batch_or_later():
    seen: list[str] = []

    def encode(texts):
        seen.extend(texts)
        return encode_letters(texts)

    search = local_search(DOCUMENTS, encode, passages=2)
    del seen[:]
    batch = search(["apple", "cake", "apple", "  apple "])
    assert seen == ["apple", "cake"]
    assert batch[0] == batch[2] == batch[3] == search(["apple"])[0]
    assert seen == ["apple", "cake"]


def test_an_encoder_that_fails_is_an_observation():
    def encode(texts):
        if "bad" in texts:
            raise RuntimeError("no luck")
        return encode_letters(texts)

    search = local_search(DOCUMENTS, encode, passages=1)
    known = search(["apple"])[0]
    bad, good = search(["bad", "apple"])
    assert bad == Observation("error: search failed: RuntimeError: no luck", "error")
    assert good == known


@given(st.lists(st.text(max_size=8), max_size=5))
def test_any_queries_are_answered_in_order_whatever_their_batch(queries):
    together = local_search(DOCUMENTS, encode_letters, passages=2)(queries)
    alone = local_search(DOCUMENTS, encode_letters, passages=2)
    assert together == [alone([query])[0] for query in queries]


def test_a_search_without_documents_or_passages_is_refused():
    with pytest.raises(ValueError, match="passages=0"):
        local_search(DOCUMENTS, encode_letters, passages=0)
    with pytest.raises(ValueError, match="documents"):
        local_search([], encode_letters, passages=1)
