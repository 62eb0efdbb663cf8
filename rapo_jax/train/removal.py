"""Updates on rollouts without their retrieved traces: `rl.retrieved_traces=removed`.

Not in the paper; docs/methods.md says why, and what it changes.
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from rapo_jax.method.tape import without_retrieved
from rapo_jax.train.rescoring import Rescorer
from rapo_jax.types import Batch, Params, Source


def better_with_traces(batch: Batch) -> np.ndarray:
    """The numbers of the rows that hold a retrieved trace and have a positive advantage."""
    holds_B = (np.asarray(batch.source_BT) == Source.RETRIEVED).any(1)
    advantage_B = np.asarray(batch.advantage_B).reshape(len(holds_B), -1).sum(1)
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
        return without_retrieved(table, source_BT) if table.ndim == 2 else table

    part = jax.tree.map(part_of, batch)
    part_length_B = length_B[rows] - (source_BT == Source.RETRIEVED).sum(1)
    part = part.replace(old_logp_BT=rescore(params, part, part_length_B))
    return jax.tree.map(partial(_put, rows), batch, part), _put(rows, length_B, part_length_B)


def _put(rows: np.ndarray, table: np.ndarray, part: np.ndarray) -> np.ndarray:
    table = np.array(table)
    table[rows] = part
    return table
