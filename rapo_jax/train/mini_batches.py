"""Updates on one rollout batch: epochs, mini-batches of whole groups, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from rapo_jax.config import Settings
from rapo_jax.method.sums import row_weight
from rapo_jax.method.tape import rows_of_groups
from rapo_jax.train.update import Updater, fetched
from rapo_jax.types import Array, Batch, Params, Source, TrainState

SHOWN_OTHERWISE = {
    *("loss", "clipped", "ratio", "shaped_ratio", "tokens", "kl", "logp_gap", "logp_gap_max"),
    *("grad_norm", "padding", "skipped", "zero_advantage_rows"),
}
"""Metrics of an update that have another name in metrics.jsonl, or none; `loss/NAME` of others."""
_row_weight = jax.jit(row_weight, static_argnames="aggregation")


def without_zero_advantage_rows(
    batch: Batch, length_B: np.ndarray, *, aggregation: str
) -> tuple[Batch, np.ndarray, float]:
    """Drops the rows of advantage 0: returns the batch, its length_B, and the weight dropped.

    A group of equal rewards has no gradient (Eqs. 9-11 without KL), so its rows need no forward
    pass: they count in the denominator alone. One row is always kept, so that every update has
    metrics.
    """
    keep_B = (np.asarray(batch.advantage) != 0).reshape(len(length_B), -1).any(1)
    if not keep_B.any():
        keep_B[np.argmin(length_B)] = True
    policy_BT = np.asarray(batch.source_BT) == Source.POLICY
    weight = float(_row_weight(policy_BT, ~keep_B, aggregation=aggregation))
    return jax.tree.map(lambda x: np.asarray(x)[keep_B], batch), length_B[keep_B], weight


class UpdateRecord(NamedTuple):
    """One update of a step, which may still be running."""

    row_numbers: np.ndarray
    """Its rows in the rollout batch, those of advantage 0 included."""
    metrics: dict[str, Array]
    """Scalars on the devices; see `Updater.update`."""


def train_on_rollouts(
    updater: Updater,
    s: Settings,
    state: TrainState,
    batch: Batch,
    length_B: np.ndarray,
    key: jax.Array,
    reference: Params | None,
) -> tuple[TrainState, list[UpdateRecord]]:
    """`rl.epochs` passes over a batch of Q * G rows, in `rl.mini_batches` updates of whole groups.

    Without a KL penalty, rows of advantage 0 are not computed (`without_zero_advantage_rows`). An
    update that is not finite is skipped (`Updater.update`). Nothing here waits for the
    updates: `update_metrics` does.
    """
    parts = []  # made before the first update, for which a later permutation would wait
    for epoch in range(s.rl.epochs):
        order_Q = np.asarray(
            jax.random.permutation(jax.random.fold_in(key, epoch), s.rollout.questions)
        )
        for part in np.split(order_Q, s.rl.mini_batches):
            index = rows_of_groups(part, s.rollout.group_size)
            mini = jax.tree.map(lambda x, index=index: np.asarray(x)[index], batch)
            lengths, zero_advantage_weight = length_B[index], 0.0
            if reference is None:
                mini, lengths, zero_advantage_weight = without_zero_advantage_rows(
                    mini, lengths, aggregation=s.rl.aggregation
                )
            parts.append((index, mini, lengths, zero_advantage_weight))
    records = []
    for index, mini, lengths, zero_advantage_weight in parts:
        state, metrics = updater.update(
            state, mini, lengths, reference, zero_advantage_weight=zero_advantage_weight
        )
        metrics["zero_advantage_rows"] = 1.0 - len(lengths) / len(index)
        records.append(UpdateRecord(index, metrics))
    return state, records


def update_metrics(records: Sequence[UpdateRecord]) -> tuple[dict[str, float], np.ndarray]:
    """Waits for the updates of a step; returns their mean metrics and the rows of skipped ones.

    Skipped updates are left out of the means, unless all were. Ratios, gaps and clip fractions
    are means over the rows that were computed.
    """
    history = [fetched(record.metrics) for record in records]
    skipped = [
        record.row_numbers
        for record, metrics in zip(records, history, strict=True)
        if metrics["skipped"]
    ]
    sound = [metrics for metrics in history if not metrics["skipped"]] or history
    mean = {k: float(np.mean([m[k] for m in sound])) for k in sound[0]}
    scalars = {
        "loss/policy": mean["loss"],
        "loss/clip_fraction": mean["clipped"],
        "loss/ratio": mean["ratio"],
        "loss/kl": mean.get("kl", 0.0),
        # of the first update: before it, sampler and trainer hold the same weights
        "loss/logp_gap": history[0]["logp_gap"],
        "loss/logp_gap_max": history[0]["logp_gap_max"],
        "loss/grad_norm": mean["grad_norm"],
        "update/padding": mean["padding"],
        "loss/skipped": float(len(skipped)),
        "update/zero_advantage_rows": mean["zero_advantage_rows"],
        **{f"loss/{name}": mean[name] for name in mean if name not in SHOWN_OTHERWISE},
    }
    return scalars, np.concatenate(skipped) if skipped else np.zeros(0, np.int64)
