"""Micro-batches: every row once, the fewest slots, no more shapes than widths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import tiny
from rapo_jax.config.read import read_settings
from rapo_jax.train.micro_batches import fewest_positions, micro_batches, power_of_two
from rapo_jax.types import Batch

BUCKETS, MICRO_TOKENS = (64, 96), 16 * 96


def cut(length_B, shards=1):
    """The micro-batches of rows whose tokens are their row numbers plus 1."""
    token_BT = np.repeat(np.arange(len(length_B))[:, None] + 1, BUCKETS[-1], axis=1)
    batch = Batch(token_BT, token_BT, token_BT, token_BT[:, 0], token_BT[:, 0])
    lengths = np.array(length_B, np.int64)
    return list(micro_batches(batch, lengths, BUCKETS, MICRO_TOKENS, shards))


def test_a_micro_batch_holds_no_more_rows_and_slots_than_there_are():
    ((micro, row_mask_B, _),) = cut([30, 20, 31])
    assert micro.token_BT.shape == (4, 32)  # not 16 rows of 96 slots
    assert row_mask_B.tolist() == [1, 1, 1, 0]
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 16]


@pytest.mark.parametrize("shards", [1, 4])
@given(length_B=st.lists(st.integers(1, 96), min_size=1, max_size=80))
def test_every_row_is_in_one_micro_batch_as_wide_as_its_longest(shards, length_B):
    rows = []
    for micro, row_mask_B, index in cut(length_B, shards):
        count, width = micro.token_BT.shape
        assert count % shards == 0
        assert count * width <= MICRO_TOKENS or count == shards
        held = [int(row) - 1 for row in micro.token_BT[row_mask_B > 0, 0]]
        assert max(length_B[row] for row in held) <= width
        assert index.tolist() == held and not row_mask_B[len(held) :].any()
        rows += held
    assert sorted(rows) == list(range(len(length_B)))


@given(length_B=st.lists(st.integers(1, 96), min_size=1, max_size=80))
def test_a_width_has_one_number_of_rows(length_B):
    """So that there are no more programs than widths."""
    shapes = {micro.token_BT.shape for micro, *_ in cut(length_B)}
    assert len(shapes) == len({width for _, width in shapes})


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    rows=st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
def test_no_other_choice_of_widths_has_fewer_slots(lengths, rows):
    rows_of = dict(zip((3, 6, 9), rows, strict=True))
    lengths = sorted(lengths, reverse=True)

    def fewest(left):
        if not left:
            return 0
        fitting = [(width, rows) for width, rows in rows_of.items() if width >= left[0]]
        return min(width * rows + fewest(left[rows:]) for width, rows in fitting)

    widths = fewest_positions(lengths, rows_of)
    assert sum(width * rows_of[width] for width in widths) == fewest(lengths)


def test_rows_of_the_tiny_run_are_padded_by_less_than_a_tenth():
    rl = read_settings(tiny.get_config().to_dict()).rl
    rng = np.random.default_rng(0)
    slots = tokens = 0
    for _ in range(50):  # mini-batches of 8 groups of 16, a fifth of them without an advantage
        mean_B = np.repeat(rng.choice([36, 48, 60, 72, 76, 96], 6), 16)
        length_B = np.clip(mean_B + rng.integers(-6, 7, len(mean_B)), 24, 144)
        tokens += length_B.sum()
        token_BT = np.zeros((len(length_B), 144), np.int32)
        batch = Batch(token_BT, token_BT, token_BT, token_BT[:, 0], token_BT[:, 0])
        parts = micro_batches(batch, length_B, rl.buckets, rl.micro_tokens, 1)
        slots += sum(micro.token_BT.size for micro, *_ in parts)
    assert 1 - tokens / slots < 0.1
