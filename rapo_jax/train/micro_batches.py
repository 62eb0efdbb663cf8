"""Micro-batches of an update: rows of similar length, in few shapes to limit compilations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rapo_jax.types import Batch

NARROW_WIDTHS = (32, 64, 128, 256, 512)
"""Widths in tokens below the first bucket, for batches whose rows are all shorter."""


class MicroBatch(NamedTuple):
    """Some rows of a batch, and padding."""

    batch: Batch
    row_mask_B: np.ndarray
    """float32, 0 at rows that only pad; these are the last ones."""
    rows: np.ndarray
    """Numbers in the batch of the rows that do not pad."""


def micro_batches(
    batch: Batch, length_B: np.ndarray, buckets: Sequence[int], micro_tokens: int, shards: int
) -> Iterator[MicroBatch]:
    """Rows from the longest to the shortest, in micro-batches of at most `micro_tokens` positions,
    or of one row a shard where that is more.

    A micro-batch is as wide as a bucket, and a width has one number of rows: as many as fit, a
    multiple of `shards`, and no more than the power of two above all rows of the batch. It does not
    depend on how many rows are left: each new number would be a shape, and compile a program.
    Widths are chosen so that all micro-batches together have the fewest positions.
    """
    narrow = [width for width in NARROW_WIDTHS if width < buckets[0]]
    most = power_of_two(-(-len(length_B) // shards))
    rows_of = {
        width: shards * min(max(micro_tokens // width // shards, 1), most)
        for width in (*narrow, *buckets)
    }
    order = np.argsort(-length_B, kind="stable")
    for width in fewest_positions(length_B[order].tolist(), rows_of):
        count = rows_of[width]
        taken, order = order[:count], order[count:]
        row_mask_B = (np.arange(count) < len(taken)).astype(np.float32)
        index = np.concatenate([taken, np.zeros(count - len(taken), taken.dtype)])

        def pick(x: np.ndarray, index=index, width=width) -> np.ndarray:
            x = np.asarray(x)[index]
            return x[:, :width] if x.ndim == 2 else x

        yield MicroBatch(jax.tree.map(pick, batch), row_mask_B, taken)


def fewest_positions(lengths: Sequence[int], rows_of: Mapping[int, int]) -> list[int]:
    """The widths of micro-batches that hold rows of falling `lengths` in the fewest positions.

    `rows_of[width]` rows fit into one. A micro-batch may be wider than its longest row needs, where
    that width's smaller number of rows leaves fewer positions empty. Of equal numbers of positions,
    that with the fewest micro-batches is chosen.
    """
    best = [(0, 0, 0)]  # of the last n rows: positions, micro-batches, width of the first of them
    for length in reversed(lengths):
        choices = []
        for width, rows in rows_of.items():
            if width >= length:
                positions, count, _ = best[max(len(best) - rows, 0)]
                choices.append((positions + rows * width, count + 1, width))
        best.append(min(choices))
    widths, left = [], len(lengths)
    while left > 0:
        widths.append(best[left][2])
        left -= rows_of[widths[-1]]
    return widths


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
