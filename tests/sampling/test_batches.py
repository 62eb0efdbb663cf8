"""Batches of one shape: padding, and where the items of a resumed list begin."""

from __future__ import annotations

import pytest

from rapo_jax.sampling.batches import even_size, padded_batches


def test_the_last_batch_repeats_its_items_and_padding_is_in_no_row():
    first, last = padded_batches("abcdefg", size=4)
    assert (first.start, first.items, first.local_items) == (0, list("abcd"), list("abcd"))
    assert (last.start, last.items, last.local_items) == (4, list("efg"), list("efge"))
    assert last.local_rows == [(0, "e"), (1, "f"), (2, "g")]


def test_a_resumed_list_has_the_batches_of_an_unbroken_one():
    assert (
        list(padded_batches("abcdefg", size=3, first=3))
        == list(padded_batches("abcdefg", size=3))[1:]
    )


@pytest.mark.parametrize(
    ("count", "most", "shards", "size"),
    [
        (4, 256, 1, 4),  # four questions are not padded to 256 rows
        (4, 256, 8, 8),
        (750, 256, 1, 250),  # three equal batches
        (750, 256, 8, 256),
        (256, 256, 8, 256),
        (0, 256, 8, 8),
    ],
)
def test_batches_are_as_large_as_there_are_items_and_no_larger_than_allowed(
    count, most, shards, size
):
    assert even_size(count, most=most, shards=shards) == size
