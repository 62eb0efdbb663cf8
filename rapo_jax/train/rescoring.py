"""Scores rows under the current policy: log pi_old of tapes that it did not sample.

These are RolloutReplay's past rows, and rows whose retrieved traces are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, RlSettings
from rapo_jax.model.scoring import log_probs
from rapo_jax.model.sharding import on_mesh, place, replicated, row_shards, rows
from rapo_jax.train.micro_batches import micro_batches
from rapo_jax.types import Batch, Params, Source

Rescorer: TypeAlias = Callable[[Params, Batch, np.ndarray], np.ndarray]
"""(params, batch, length_B) -> log-probabilities of the policy's tokens, 0 elsewhere, [B, T]."""


def make_rescorer(model: ModelSettings, mesh: Mesh, rl: RlSettings) -> Rescorer:
    """Scores rows in the micro-batches of an update."""

    @partial(jax.jit, out_shardings=replicated(mesh))  # each process fetches all rows
    def score(params: Params, token_BT: jax.Array, source_BT: jax.Array) -> jax.Array:
        with on_mesh(mesh):
            return log_probs(model, params, token_BT, source_BT == Source.POLICY)

    def rescore(params: Params, batch: Batch, length_B: np.ndarray) -> np.ndarray:
        logp_BT = np.zeros(batch.token_BT.shape, np.float32)
        sizes = (rl.buckets, rl.micro_tokens, row_shards(mesh))
        for micro, _, index in micro_batches(batch, length_B, *sizes):
            arrays = place((micro.token_BT, micro.source_BT), rows(mesh))
            part_BT = np.asarray(jax.device_get(score(params, *arrays)))
            logp_BT[index, : part_BT.shape[1]] = part_BT[: len(index)]
        return logp_BT

    return rescore


def with_old_logp(rescore: Rescorer, params: Params, batch: Batch, past_B: np.ndarray) -> Batch:
    """The batch with log pi_old of the rows `past_B`, and what their tapes recorded as log mu."""
    old_logp_BT = np.array(batch.old_logp_BT)
    if len(past_B):
        past = jax.tree.map(lambda x: np.asarray(x)[past_B], batch)
        length_B = (past.source_BT != Source.PAD).sum(1)
        old_logp_BT[past_B] = rescore(params, past, length_B)
    return batch.replace(old_logp_BT=old_logp_BT, behaviour_logp_BT=np.array(batch.old_logp_BT))
