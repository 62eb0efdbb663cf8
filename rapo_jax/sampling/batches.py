"""Batches of questions or rows that all have one shape, split over the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rapo_jax.distributed import local_part

T = TypeVar("T")


@dataclass(frozen=True)
class PaddedBatch(Generic[T]):
    """One batch of all processes: `items`, and this process's part of them."""

    start: int
    """Number of the first item in the whole list."""
    items: list[T]
    """Without padding."""
    local_items: list[T]
    """What this process samples, padding included."""
    local_rows: list[tuple[int, T]]
    """Row number in the batch and item, without padding."""


def row_questions(questions: Sequence[T], group_size: int) -> list[T]:
    """The question of each row: every one as often as its group has rows."""
    return [question for question in questions for _ in range(group_size)]


def even_size(count: int, *, most: int, shards: int) -> int:
    """The size of equal batches of `count` items: at most `most`, a multiple of `shards`.

    `most` must be such a multiple. A few items make one small batch, not one padded to `most`.
    """
    batches = max(-(-count // most), 1)
    return max(-(-count // (batches * shards)), 1) * shards


def padded_batches(items: Sequence[T], *, size: int, first: int = 0) -> Iterator[PaddedBatch[T]]:
    """All items from `first` on, `size` at a time; the last batch repeats its items to be full.

    One shape means one compilation.
    """
    for start in range(first, len(items), size):
        some = list(items[start : start + size])
        rows = local_part(list(enumerate((some * size)[:size])))
        yield PaddedBatch(
            start,
            some,
            [item for _, item in rows],
            [(row, item) for row, item in rows if row < len(some)],
        )
