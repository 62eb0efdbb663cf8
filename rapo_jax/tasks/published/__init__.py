"""Published question sets, each read from its publisher's files; the table is SETS."""

from __future__ import annotations

from rapo_jax.tasks.published import knowledge, maths, training, web
from rapo_jax.tasks.published.published import Published, Row, find_files, read_rows, read_split

__all__ = ["SETS", "Published", "Row", "find_files", "read_rows", "read_split"]

SETS: dict[str, Published] = {**maths.SETS, **knowledge.SETS, **web.SETS, **training.SETS}
