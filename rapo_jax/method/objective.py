"""The policy objective: ratio, importance shaping, clip, KL, aggregation (Eqs. 8, 11).

Also the objectives of the paper's baselines (docs/methods.md): the clips of GPPO and
AEPO are variants of `policy_loss`; LUFFY and RolloutReplay have losses of their own.

Training calls the functions `..._sums`: a sum and its weight, which micro-batches add up (`sums`).
`policy_loss` is RAPO's of a whole batch, for use from Python.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rapo_jax.method.clipping import clipped_ratio
from rapo_jax.method.sums import aggregate, metric_means, ratio_metrics

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are cut here before exp: far outside any clip, and no inf * 0 = NaN in float32."""


def _ratio(log_ratio_BT: jax.Array) -> jax.Array:
    return jnp.exp(jnp.clip(log_ratio_BT, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def shaped_ratio(
    log_ratio_BT: jax.Array, retrieved_share_B: jax.Array, *, m: float
) -> tuple[jax.Array, jax.Array]:
    """The ratio r = pi_theta / pi_old, and r^ = (1 + m F_ret) r: importance shaping (Eq. 8)."""
    ratio_BT = _ratio(log_ratio_BT)
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
    clipping: str = "ppo",
    dual_clip: float | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate of the shaped ratio, as sums: the loss is `loss_sum / weight` (Eqs. 8, 11).

        r^ = (1 + m F_ret) pi_theta / pi_old,   -min(r^ A, clip(r^, 1 - clip_low, 1 + clip_high) A)

    The gradient is exactly zero at every token outside the mask, even where the inputs are NaN.

    Args:
      logp_BT: log pi_theta of the token at each position; differentiated.
      old_logp_BT: log pi_old of the same tokens, as the sampler recorded it.
      policy_mask_BT: True at POLICY tokens.
      advantage_B: A of each row (Eq. 10); or of each token, [B, T].
      retrieved_share_B: F_ret of each row; 0 for on-policy rollouts.
      row_mask_B: False for rows that only pad a micro-batch: they count nowhere.
      m: strength of the importance shaping; see `share_silenced_above`.
      clip_low, clip_high: bounds of the clip below and above 1.
      aggregation: a key of `sums.AGGREGATIONS`, static.
      clipping: a key of `clipping.CLIPPINGS`, static: which tokens beyond a bound keep a gradient.
      dual_clip: c > 1 bounds the loss of a negative advantage by -c A, without gradient beyond.

    Returns:
      loss_sum, weight (rows or tokens, by aggregation) and metric_sums: `tokens`, `clipped` tokens
      (those whose loss a bound decides), sums of `ratio` and `shaped_ratio`, sum `logp_gap` and
      maximum `logp_gap_max` of |logp - old_logp|. Join them with `add_metric_sums`.

    Raises:
      ValueError: unknown `aggregation` or `clipping`.
    """
    row_mask_B = row_mask_B.astype(bool)
    mask_BT = policy_mask_BT.astype(bool) & row_mask_B[:, None]
    # Masking the inputs, not the result, keeps NaN and inf out of the backward pass as well.
    log_ratio_BT = jnp.where(mask_BT, logp_BT, 0) - jnp.where(mask_BT, old_logp_BT, 0)
    ratio_BT, shaped_BT = shaped_ratio(log_ratio_BT, retrieved_share_B, m=m)
    A_BT = _of_tokens(advantage_B, mask_BT)
    free_BT = shaped_BT * A_BT
    bounded_BT = clipped_ratio(shaped_BT, 1 - clip_low, 1 + clip_high, clipping=clipping) * A_BT
    gain_BT = jnp.minimum(free_BT, bounded_BT)
    clipped_BT = bounded_BT < free_BT
    if dual_clip is not None:
        floor_BT = dual_clip * A_BT
        clipped_BT |= (A_BT < 0) & (gain_BT < floor_BT)
        gain_BT = jnp.where(A_BT < 0, jnp.maximum(gain_BT, floor_BT), gain_BT)
    loss_BT = jnp.where(mask_BT, -gain_BT, 0)
    loss_sum, weight = aggregate(loss_BT, mask_BT, row_mask_B, aggregation)
    metrics = ratio_metrics(log_ratio_BT, mask_BT, clipped_BT, ratio=ratio_BT, shaped=shaped_BT)
    return loss_sum, weight, metrics


def _of_tokens(advantage: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """The advantage of each token: that of its row where `advantage` is [B]."""
    return advantage[:, None] if advantage.ndim == 1 else jnp.where(mask_BT, advantage, 0)


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
    clipping: str = "ppo",
    dual_clip: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """RAPO's objective without its KL term, negated: a loss to minimise (Eqs. 8, 11).

    `policy_loss_sums` of the whole batch, divided; metrics are `metric_means`.
    """
    loss_sum, weight, sums = policy_loss_sums(
        logp_BT,
        old_logp_BT,
        policy_mask_BT,
        advantage_B,
        retrieved_share_B,
        jnp.ones(len(advantage_B), bool),
        m=m,
        clip_low=clip_low,
        clip_high=clip_high,
        aggregation=aggregation,
        clipping=clipping,
        dual_clip=dual_clip,
    )
    return loss_sum / jnp.maximum(weight, 1), metric_means(sums)


def luffy_loss_sums(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    on_policy_mask_BT: jax.Array,
    off_policy_mask_BT: jax.Array,
    advantage_B: jax.Array,
    row_mask_B: jax.Array,
    *,
    gamma: float,
    aggregation: str,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """LUFFY's loss on mixed groups, as sums: the loss is `loss_sum / weight`.

        on-policy tokens: -A pi_theta / pi_old, not clipped
        off-policy tokens: -A f(pi_theta), f(pi) = pi / (pi + gamma): their behaviour policy counts
        as 1, and tokens that are unlikely under the policy keep a gradient

    Args:
      logp_BT, old_logp_BT: see `policy_loss_sums`; the latter is not read at off-policy tokens.
      on_policy_mask_BT: True at the tokens that the policy sampled.
      off_policy_mask_BT: True at those that another agent wrote, observations excluded.
      advantage_B: over the group with its off-policy rows; or of each token, [B, T].
      row_mask_B, aggregation: see `policy_loss_sums`.
      gamma: > 0; the probability at which f is a half.

    Returns:
      loss_sum, weight, and the metric sums of `policy_loss_sums` with `off_policy` tokens and the
      sum `off_weight` of f at them; the others are of on-policy tokens alone.
    """
    row_mask_B = row_mask_B.astype(bool)
    on_BT = on_policy_mask_BT.astype(bool) & row_mask_B[:, None]
    off_BT = off_policy_mask_BT.astype(bool) & row_mask_B[:, None]
    both_BT = on_BT | off_BT
    log_ratio_BT = jnp.where(on_BT, logp_BT, 0) - jnp.where(on_BT, old_logp_BT, 0)
    ratio_BT = _ratio(log_ratio_BT)
    pi_BT = jnp.exp(jnp.where(off_BT, logp_BT, 0))
    f_BT = pi_BT / (pi_BT + gamma)
    gain_BT = jnp.where(off_BT, f_BT, ratio_BT) * _of_tokens(advantage_B, both_BT)
    loss_BT = jnp.where(both_BT, -gain_BT, 0)
    loss_sum, weight = aggregate(loss_BT, both_BT, row_mask_B, aggregation)
    none_BT = jnp.zeros_like(on_BT)
    metrics = ratio_metrics(log_ratio_BT, on_BT, none_BT, ratio=ratio_BT, shaped=ratio_BT)
    off = {
        "off_policy": jnp.sum(off_BT).astype(loss_sum.dtype),
        "off_weight": jnp.sum(jnp.where(off_BT, f_BT, 0)),
    }
    return loss_sum, weight, metrics | jax.lax.stop_gradient(off)


def replay_loss_sums(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    behaviour_logp_BT: jax.Array,
    mask_BT: jax.Array,
    advantage_B: jax.Array,
    row_mask_B: jax.Array,
    *,
    clip: float,
    aggregation: str,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """RolloutReplay's clipped surrogate, as sums: the loss is `loss_sum / weight`.

        r = pi_theta / mu, r_old = pi_old / mu;   -min(r A, clip(r, r_old (1 -+ clip)) A)

    With mu = pi_old, as for fresh rows, this is GRPO's.

    Args:
      old_logp_BT: log pi_old: of the policy at the start of the update.
      behaviour_logp_BT: log mu: of the policy that sampled the row, perhaps many updates ago.
      Others, returns and errors: see `policy_loss_sums`; `ratio` is r; `logp_gap` is of
        log pi_theta - log pi_old, which is 0 before the first update whoever sampled the row.
    """
    row_mask_B = row_mask_B.astype(bool)
    mask_BT = mask_BT.astype(bool) & row_mask_B[:, None]
    mu_BT = jnp.where(mask_BT, behaviour_logp_BT, 0)
    log_ratio_BT = jnp.where(mask_BT, logp_BT, 0) - mu_BT
    r_BT = _ratio(log_ratio_BT)
    gap_BT = jnp.where(mask_BT, logp_BT, 0) - jnp.where(mask_BT, old_logp_BT, 0)
    r_old_BT = _ratio(jnp.where(mask_BT, old_logp_BT, 0) - mu_BT)
    A_BT = _of_tokens(advantage_B, mask_BT)
    free_BT = r_BT * A_BT
    low_BT, high_BT = r_old_BT * (1 - clip), r_old_BT * (1 + clip)
    bounded_BT = clipped_ratio(r_BT, low_BT, high_BT, clipping="ppo") * A_BT
    loss_BT = jnp.where(mask_BT, -jnp.minimum(free_BT, bounded_BT), 0)
    loss_sum, weight = aggregate(loss_BT, mask_BT, row_mask_B, aggregation)
    clipped_BT = bounded_BT < free_BT
    metrics = ratio_metrics(gap_BT, mask_BT, clipped_BT, ratio=r_BT, shaped=r_BT)
    return loss_sum, weight, metrics


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
    return aggregate(kl_BT, mask_BT, row_mask_B, aggregation)


def share_silenced_above(m: float, clip_high: float) -> float:
    """The F_ret above which m F_ret exceeds the upper clip bound (Eqs. 8, 11); inf if none does.

    A rollout with more retrieved tokens starts outside the clip: its tokens of positive advantage
    are all silenced at ratio 1.
    """
    return clip_high / m if m > 0 else math.inf
