"""Micro-batches: every row once, no more rows and slots than needed, few shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.train.micro_batches import micro_batches, power_of_two
from rapo_jax.types import Batch

BUCKETS, MICRO_TOKENS = (64, 96), 16 * 96


def cut(length_B, shards=1):
    """The micro-batches of rows whose tokens are their row numbers plus 1."""
    token_BT = np.repeat(np.arange(len(length_B))[:, None] + 1, BUCKETS[-1], axis=1)
    batch = Batch(token_BT, token_BT, token_BT, token_BT[:, 0], token_BT[:, 0])
    lengths = np.array(length_B, np.int64)
    return list(micro_batches(batch, lengths, BUCKETS, MICRO_TOKENS, shards))


def test_a_micro_batch_holds_no_more_rows_and_slots_than_there_are():
    ((micro, row_mask_B),) = cut([30, 20, 31])
    assert micro.token_BT.shape == (4, 32)  # not 16 rows of 96 slots
    assert row_mask_B.tolist() == [1, 1, 1, 0]
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 16]


@pytest.mark.parametrize("shards", [1, 4])
@given(length_B=st.lists(st.integers(1, 96), min_size=1, max_size=80))
def test_every_row_is_in_one_micro_batch_as_wide_as_its_longest(shards, length_B):
    rows = []
    for micro, row_mask_B in cut(length_B, shards):
        count, width = micro.token_BT.shape
        assert count % shards == 0
        assert count * width <= MICRO_TOKENS or count == shards
        held = [int(row) - 1 for row in micro.token_BT[row_mask_B > 0, 0]]
        assert max(length_B[row] for row in held) <= width
        rows += held
    assert sorted(rows) == list(range(len(length_B)))
