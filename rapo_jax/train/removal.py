"""What updates make of retrieved traces: the choices of `rl.retrieved_traces`.

'removed' is not in the paper; docs/methods.md says why, and what it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np

from rapo_jax.method.tape import with_rows, without_retrieved_tokens
from rapo_jax.train.rescoring import Rescorer
from rapo_jax.types import Batch, Params, Source

Read: TypeAlias = tuple[Batch, np.ndarray, dict[str, float]]
"""The batch that updates read, its length_B, and metrics."""


def better_with_traces(batch: Batch) -> np.ndarray:
    """The numbers of the rows that hold a retrieved trace and have a positive advantage."""
    holds_B = (np.asarray(batch.source_BT) == Source.RETRIEVED).any(1)
    advantage_B = np.asarray(batch.advantage).reshape(len(holds_B), -1).sum(1)
    return np.flatnonzero(holds_B & (advantage_B > 0))


def without_traces(
    rescore: Rescorer, params: Params, batch: Batch, length_B: np.ndarray, rows: np.ndarray
) -> tuple[Batch, np.ndarray]:
    """Removes the retrieved tokens of `rows`; returns the batch and its length_B.

    What a trace led to is learned as the policy's own decision, from the context that it has
    without retrieval. log pi_old of these rows is that of the present policy in the new context, so
    that their ratio begins at 1; F_ret and A stay those of the rollout.
    """
    if not len(rows):
        return batch, length_B
    source_BT = np.asarray(batch.source_BT)[rows]

    def part_of(table: np.ndarray) -> np.ndarray:
        table = np.asarray(table)[rows]
        return without_retrieved_tokens(table, source_BT) if table.ndim == 2 else table

    part = jax.tree.map(part_of, batch)
    part_length_B = length_B[rows] - (source_BT == Source.RETRIEVED).sum(1)
    part = part.replace(old_logp_BT=rescore(params, part, part_length_B))
    batch = jax.tree.map(lambda table, values: with_rows(table, rows, values), batch, part)
    return batch, with_rows(length_B, rows, part_length_B)


def as_read(rescore: Rescorer, params: Params, batch: Batch, length_B: np.ndarray) -> Read:
    """All rows as the rollout wrote them."""
    return batch, length_B, {}


def removed(rescore: Rescorer, params: Params, batch: Batch, length_B: np.ndarray) -> Read:
    """The rows of positive advantage without their traces, and the share of such rows."""
    rows = better_with_traces(batch)
    batch, length_B = without_traces(rescore, params, batch, length_B, rows)
    return batch, length_B, {"update/rows_without_traces": len(rows) / len(length_B)}


RETRIEVED_TRACES: dict[str, Callable[[Rescorer, Params, Batch, np.ndarray], Read]] = {
    "read": as_read,
    "removed": removed,
}
"""By `rl.retrieved_traces`."""
