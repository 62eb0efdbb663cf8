"""Question sets that others publish, each read from its publisher's own files; one table, SETS."""

from __future__ import annotations

from rapo_jax.tasks.published import knowledge, maths, training, web
from rapo_jax.tasks.published.published import Published, Row, find_files, read_rows

__all__ = ["SETS", "Published", "Row", "find_files", "read_rows"]

SETS: dict[str, Published] = {**maths.SETS, **knowledge.SETS, **web.SETS, **training.SETS}
