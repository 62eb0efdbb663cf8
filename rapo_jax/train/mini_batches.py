"""The updates on one rollout batch: epochs, mini-batches of whole groups, and their metrics."""

from __future__ import annotations

import jax
import numpy as np

from rapo_jax.config import Settings
from rapo_jax.method.objective import row_weight
from rapo_jax.train.update import Updater
from rapo_jax.types import Batch, Params, Source, TrainState

_row_weight = jax.jit(row_weight, static_argnames="aggregation")


def without_zero_advantage_rows(
    batch: Batch, length_B: np.ndarray, *, aggregation: str
) -> tuple[Batch, np.ndarray, float]:
    """Drops the rows of advantage 0: returns the batch, its length_B, and the weight dropped.

    A group of equal rewards has no gradient (Eqs. 9-11 without KL), so its rows need no forward
    pass: they count in the denominator alone. One row is always kept, so that every update has
    metrics.
    """
    keep_B = np.asarray(batch.advantage_B) != 0
    if not keep_B.any():
        keep_B[np.argmin(length_B)] = True
    policy_BT = np.asarray(batch.source_BT) == Source.POLICY
    weight = float(_row_weight(policy_BT, ~keep_B, aggregation=aggregation))
    return jax.tree.map(lambda x: np.asarray(x)[keep_B], batch), length_B[keep_B], weight


def train_on_rollouts(
    updater: Updater,
    s: Settings,
    state: TrainState,
    batch: Batch,
    length_B: np.ndarray,
    key: jax.Array,
    reference: Params | None,
) -> tuple[TrainState, dict[str, float], np.ndarray]:
    """`rl.epochs` passes over a batch of Q * G rows, in `rl.mini_batches` updates of whole groups.

    Without a KL penalty, rows of advantage 0 are not computed (`without_zero_advantage_rows`);
    ratios, gaps and clip fractions are means over the others. An update that is not finite is
    skipped (`Updater.update`) and left out of the means.

    Returns the state, metrics, and the rows of the skipped updates.
    """
    Q, G = s.rollout.questions, s.rollout.group_size
    history: list[dict[str, float]] = []
    skipped: list[np.ndarray] = []
    for epoch in range(s.rl.epochs):
        order_Q = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), Q))
        for part in np.split(order_Q, s.rl.mini_batches):
            index = (part[:, None] * G + np.arange(G)).reshape(-1)
            mini = jax.tree.map(lambda x, index=index: np.asarray(x)[index], batch)
            lengths, zero_advantage_weight = length_B[index], 0.0
            if reference is None:
                mini, lengths, zero_advantage_weight = without_zero_advantage_rows(
                    mini, lengths, aggregation=s.rl.aggregation
                )
            state, metrics = updater.update(
                state, mini, lengths, reference, zero_advantage_weight=zero_advantage_weight
            )
            history.append(metrics | {"zero_advantage_rows": 1.0 - len(lengths) / len(index)})
            if metrics["skipped"]:
                skipped.append(index)
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
    }
    return state, scalars, np.concatenate(skipped) if skipped else np.zeros(0, np.int64)
