"""Sums of losses and metrics over micro-batches, and the weights that they are divided by.

Micro-batches add up to the whole batch however it is split: add `loss_sum` (or its gradients) and
`weight`, divide once at the end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rapo_jax.method.variants import choose_variant

MAX_METRICS = frozenset({"logp_gap_max"})
"""Metrics that are joined by max instead of +. All metric sums are >= 0."""


def _row_means(value_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Sum over rows of 1/|S| sum_j (Eq. 11); a row without policy tokens counts as 0."""
    count_B = jnp.maximum(jnp.sum(mask_BT, axis=1), 1).astype(value_BT.dtype)
    return jnp.sum(jnp.sum(value_BT, axis=1) / count_B)


def _token_sums(value_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    return jnp.sum(value_BT)


AGGREGATIONS = {
    "sequence_mean": (_row_means, False),  # mean over rows of their token means (Eq. 11)
    "token_mean": (_token_sums, True),  # mean over all policy tokens of the batch (DAPO)
    "sequence_sum": (_token_sums, False),  # mean over rows of their token sums
}
"""By name: a sum over values that are 0 outside the mask, and whether its weight is of tokens."""


def aggregate(
    value_BT: jax.Array, mask_BT: jax.Array, row_mask_B: jax.Array, aggregation: str
) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of values that are 0 outside the mask: the aggregate is sum / weight.

    Raises:
      ValueError: unknown `aggregation`.
    """
    total, of_tokens = choose_variant(AGGREGATIONS, key="aggregation", name=aggregation)
    weight = jnp.sum(mask_BT if of_tokens else row_mask_B)
    return total(value_BT, mask_BT), weight.astype(value_BT.dtype)


def row_weight(policy_mask_BT: jax.Array, row_mask_B: jax.Array, *, aggregation: str) -> jax.Array:
    """Contribution of the rows of `row_mask_B` to the loss denominator.

    A row of advantage 0 contributes nothing else.
    """
    mask_BT = policy_mask_BT.astype(bool) & row_mask_B[:, None]
    return aggregate(jnp.zeros(mask_BT.shape, jnp.float32), mask_BT, row_mask_B, aggregation)[1]


def ratio_metrics(
    log_ratio_BT: jax.Array,
    mask_BT: jax.Array,
    clipped_BT: jax.Array,
    *,
    ratio: jax.Array,
    shaped: jax.Array,
) -> dict[str, jax.Array]:
    """The metric sums of `policy_loss_sums`; log-ratios are 0 outside the mask."""
    gap_BT = jnp.abs(log_ratio_BT)
    metric_sums = {
        "tokens": jnp.sum(mask_BT).astype(ratio.dtype),
        "clipped": jnp.sum(mask_BT & clipped_BT).astype(ratio.dtype),
        "ratio": jnp.sum(jnp.where(mask_BT, ratio, 0)),
        "shaped_ratio": jnp.sum(jnp.where(mask_BT, shaped, 0)),
        "logp_gap": jnp.sum(gap_BT),
        "logp_gap_max": jnp.max(gap_BT),
    }
    return jax.lax.stop_gradient(metric_sums)


def add_metric_sums(
    left: dict[str, jax.Array], right: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Joins the metric sums of two micro-batches; zeros are neutral."""
    joins = {name: jnp.maximum if name in MAX_METRICS else jnp.add for name in left}
    return {name: join(left[name], right[name]) for name, join in joins.items()}


def metric_means(metric_sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Metric sums as means over policy tokens; counts stay counts, a maximum a maximum.

    `off_weight` is a mean over off-policy tokens.
    """
    tokens = jnp.maximum(metric_sums["tokens"], 1)
    off_policy = jnp.maximum(metric_sums.get("off_policy", 0), 1)
    untouched = MAX_METRICS | {"tokens", "off_policy"}
    return {
        k: v if k in untouched else v / (off_policy if k == "off_weight" else tokens)
        for k, v in metric_sums.items()
    }
