"""Micro-batching: queries of several threads in one search, each with its hits."""

from __future__ import annotations

import threading

import pytest

from rapo_jax.search.batches import Batcher, Document


def test_queries_that_arrive_together_are_searched_together_and_each_gets_its_hits():
    batches = []
    begun, others = threading.Event(), threading.Event()

    def search(queries, topk):
        batches.append(list(queries))
        begun.set()
        others.wait(20)  # the first search lasts until the others have asked
        return [[(Document(query, query), float(i)) for i in range(topk)] for query in queries]

    batcher, found = Batcher(search, wait_s=0.2), {}

    def work(name, k):
        found[name] = batcher([name, name + "'"], k)

    threads = [threading.Thread(target=work, args=(f"q{i}", 1 + i % 3)) for i in range(6)]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]:
        thread.start()
    others.set()
    for thread in threads:
        thread.join()
    assert len(batches) < 6 and sorted(sum(batches, [])) == sorted(
        name + mark for name in found for mark in ("", "'")
    )
    for i in range(6):
        for hits, mark in zip(found[f"q{i}"], ("", "'"), strict=True):
            assert [document.id for document, _ in hits] == [f"q{i}{mark}"] * (1 + i % 3)
    batcher.close()


@pytest.mark.parametrize("given", [0, 1, 3])
def test_a_search_that_forgets_or_adds_a_query_is_an_error_and_not_a_shift(given):
    batcher = Batcher(lambda queries, topk: [[]] * given)
    with pytest.raises(RuntimeError, match=f"gave {given} results for 2 queries"):
        batcher(["a", "b"], 1)
    batcher.close()


def test_a_closed_batcher_answers_with_an_error():
    batcher = Batcher(lambda queries, topk: [[] for _ in queries])
    batcher.close()
    with pytest.raises(RuntimeError, match="the search is closed"):
        batcher(["a"], 1)
