"""Batches of one shape: padding, and where the items of a resumed list begin."""

from __future__ import annotations

from rapo_jax.train.batches import padded_batches


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
