"""The policy objective: ratio, importance shaping, clip, KL, aggregation (Eqs. 8, 11).

Everything comes as sums and weights, so that micro-batches add up to the whole batch however it is
split: add `loss_sum` (or its gradients) and `weight`, divide once at the end.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rapo_jax.method.variants import choose_variant

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are cut here before exp: far outside any clip, and no inf * 0 = NaN in float32."""

MAX_METRICS = frozenset({"logp_gap_max"})
"""Metric sums that are maxima: they join by max instead of +. All metric sums are >= 0."""


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


def _aggregate(
    value_BT: jax.Array, mask_BT: jax.Array, row_mask_B: jax.Array, aggregation: str
) -> tuple[jax.Array, jax.Array]:
    total, of_tokens = choose_variant(AGGREGATIONS, key="aggregation", name=aggregation)
    weight = jnp.sum(mask_BT if of_tokens else row_mask_B)
    return total(value_BT, mask_BT), weight.astype(value_BT.dtype)


def row_weight(policy_mask_BT: jax.Array, row_mask_B: jax.Array, *, aggregation: str) -> jax.Array:
    """The weight that the rows of `row_mask_B` add to a batch: all that one of advantage 0 adds."""
    mask_BT = policy_mask_BT.astype(bool) & row_mask_B[:, None]
    return _aggregate(jnp.zeros(mask_BT.shape, jnp.float32), mask_BT, row_mask_B, aggregation)[1]


def shaped_ratio(
    log_ratio_BT: jax.Array, retrieved_share_B: jax.Array, *, m: float
) -> tuple[jax.Array, jax.Array]:
    """The ratio r = pi_theta / pi_old, and r^ = (1 + m F_ret) r: importance shaping (Eq. 8)."""
    ratio_BT = jnp.exp(jnp.clip(log_ratio_BT, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    return ratio_BT, (1 + m * retrieved_share_B[:, None]) * ratio_BT


def policy_loss_sums(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    policy_mask_BT: jax.Array,
    advantage_B: jax.Array,
    retrieved_share_B: jax.Array,
    row_mask_B: jax.Array,
    *,
    m: float,
    clip_low: float,
    clip_high: float,
    aggregation: str,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate of the shaped ratio, as sums: the loss is `loss_sum / weight` (Eqs. 8, 11).

        r^ = (1 + m F_ret) pi_theta / pi_old,   -min(r^ A, clip(r^, 1 - clip_low, 1 + clip_high) A)

    The gradient is exactly zero at every token outside the mask, even where the inputs are NaN.

    Args:
      logp_BT: log pi_theta of the token at each slot; differentiated.
      old_logp_BT: log pi_old of the same tokens, as the sampler recorded it.
      policy_mask_BT: True at POLICY tokens.
      advantage_B: A of each row (Eq. 10).
      retrieved_share_B: F_ret of each row; 0 for on-policy rollouts.
      row_mask_B: False for rows that only pad a micro-batch: they count nowhere.
      m: strength of the importance shaping; see `share_silenced_above`.
      clip_low, clip_high: bounds of the clip below and above 1.
      aggregation: a key of `AGGREGATIONS`, static.

    Returns:
      loss_sum, weight (rows or tokens, by aggregation) and metric_sums: `tokens`, `clipped` tokens
      (those the clip deprives of gradient), sums of `ratio` and `shaped_ratio`, sum `logp_gap` and
      maximum `logp_gap_max` of |logp - old_logp|. Join them with `add_metric_sums`.

    Raises:
      ValueError: unknown `aggregation`.
    """
    row_mask_B = row_mask_B.astype(bool)
    mask_BT = policy_mask_BT.astype(bool) & row_mask_B[:, None]
    # Masking the inputs, not the result, keeps NaN and inf out of the backward pass as well.
    log_ratio_BT = jnp.where(mask_BT, logp_BT, 0) - jnp.where(mask_BT, old_logp_BT, 0)
    ratio_BT, shaped_BT = shaped_ratio(log_ratio_BT, retrieved_share_B, m=m)
    free_BT = shaped_BT * advantage_B[:, None]
    bounded_BT = jnp.clip(shaped_BT, 1 - clip_low, 1 + clip_high) * advantage_B[:, None]
    loss_BT = jnp.where(mask_BT, -jnp.minimum(free_BT, bounded_BT), 0)
    loss_sum, weight = _aggregate(loss_BT, mask_BT, row_mask_B, aggregation)

    gap_BT = jnp.abs(log_ratio_BT)
    metric_sums = {
        "tokens": jnp.sum(mask_BT).astype(loss_BT.dtype),
        "clipped": jnp.sum(mask_BT & (bounded_BT < free_BT)).astype(loss_BT.dtype),
        "ratio": jnp.sum(jnp.where(mask_BT, ratio_BT, 0)),
        "shaped_ratio": jnp.sum(jnp.where(mask_BT, shaped_BT, 0)),
        "logp_gap": jnp.sum(gap_BT),
        "logp_gap_max": jnp.max(gap_BT),
    }
    return loss_sum, weight, jax.lax.stop_gradient(metric_sums)


def policy_loss(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    policy_mask_BT: jax.Array,
    advantage_B: jax.Array,
    retrieved_share_B: jax.Array,
    *,
    m: float,
    clip_low: float,
    clip_high: float,
    aggregation: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """RAPO's objective without its KL term, negated: a loss to minimise (Eqs. 8, 11).

    `policy_loss_sums` of the whole batch, divided; metrics are `metric_means`.
    """
    arrays = (logp_BT, old_logp_BT, policy_mask_BT, advantage_B, retrieved_share_B)
    all_rows_B = jnp.ones_like(advantage_B, dtype=bool)
    loss_sum, weight, sums = policy_loss_sums(
        *arrays, all_rows_B, m=m, clip_low=clip_low, clip_high=clip_high, aggregation=aggregation
    )
    return loss_sum / jnp.maximum(weight, 1), metric_means(sums)


def kl_penalty_sums(
    logp_BT: jax.Array,
    ref_logp_BT: jax.Array,
    policy_mask_BT: jax.Array,
    row_mask_B: jax.Array,
    *,
    aggregation: str,
) -> tuple[jax.Array, jax.Array]:
    """KL(pi_theta || pi_ref) at the policy's tokens, as a sum and its weight (Eq. 11, beta > 0).

    The k3 estimator e^d - d - 1 with d = log pi_ref - log pi_theta: never negative, and unbiased at
    tokens sampled from pi_theta. Arguments and errors: see `policy_loss_sums`.
    """
    row_mask_B = row_mask_B.astype(bool)
    mask_BT = policy_mask_BT.astype(bool) & row_mask_B[:, None]
    d_BT = jnp.where(mask_BT, ref_logp_BT, 0) - jnp.where(mask_BT, logp_BT, 0)
    d_BT = jnp.clip(d_BT, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    kl_BT = jnp.where(mask_BT, jnp.expm1(d_BT) - d_BT, 0)
    return _aggregate(kl_BT, mask_BT, row_mask_B, aggregation)


def add_metric_sums(
    left: dict[str, jax.Array], right: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Joins the metric sums of two micro-batches; zeros are neutral."""
    joins = {name: jnp.maximum if name in MAX_METRICS else jnp.add for name in left}
    return {name: join(left[name], right[name]) for name, join in joins.items()}


def metric_means(metric_sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Metric sums as means over policy tokens; `tokens` stays a count, a maximum a maximum."""
    tokens = jnp.maximum(metric_sums["tokens"], 1)
    untouched = MAX_METRICS | {"tokens"}
    return {k: v if k in untouched else v / tokens for k, v in metric_sums.items()}


def share_silenced_above(m: float, clip_high: float) -> float:
    """The F_ret above which m F_ret exceeds the upper clip bound (Eqs. 8, 11); inf if none does.

    A rollout with more retrieved tokens starts outside the clip: its tokens of positive advantage
    are all silenced at ratio 1.
    """
    return clip_high / m if m > 0 else math.inf
