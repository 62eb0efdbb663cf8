"""Micro-batches of an update: rows of similar length, in few shapes, for each is a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from rapo_jax.types import Batch

NARROW_WIDTHS = (32, 64, 128, 256, 512)
"""Widths in tokens below the first bucket, for batches whose rows are all shorter."""


def micro_batches(
    batch: Batch,
    length_B: np.ndarray,
    buckets: Sequence[int],
    micro_tokens: int,
    shards: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Rows from the longest to the shortest, as many at a time as fit `micro_tokens`.

    A micro-batch is as wide as its longest row, rounded up to a bucket. Its rows are a multiple of
    `shards`, and no more than the power of two above all rows of the batch: by those that are left,
    there would be a program more for nearly every update. Yields it with row_mask_B, float32, 0 at
    rows that only pad.
    """
    widths = {*buckets, *(width for width in NARROW_WIDTHS if width < buckets[0])}
    order = np.argsort(-length_B, kind="stable")
    most = power_of_two(-(-len(order) // shards))
    while len(order):
        width = min(w for w in widths if w >= length_B[order[0]])
        fitting = max(micro_tokens // width // shards, 1)
        count = shards * min(fitting, most)
        taken, order = order[:count], order[count:]
        row_mask_B = (np.arange(count) < len(taken)).astype(np.float32)
        index = np.concatenate([taken, np.zeros(count - len(taken), taken.dtype)])

        def pick(x: np.ndarray, index=index, width=width) -> np.ndarray:
            x = np.asarray(x)[index]
            return x[:, :width] if x.ndim == 2 else x

        yield jax.tree.map(pick, batch), row_mask_B


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
