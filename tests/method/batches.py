"""Random batches and the compiled loss, shared by the tests of the objective."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.method import objective
from rapo_jax.method.sums import metric_means

PAPER = {"m": 0.05, "clip_low": 0.28, "clip_high": 0.28, "aggregation": "sequence_mean"}

policy_loss = jax.jit(objective.policy_loss, static_argnames="aggregation")


@partial(jax.jit, static_argnames="aggregation")
def loss_and_gradient(logp_BT, *others, **hyper):
    """((loss, metrics), gradient) of `policy_loss` by the log-probs."""
    return jax.value_and_grad(objective.policy_loss, has_aux=True)(logp_BT, *others, **hyper)


def whole_batch(loss_sums):
    """The compiled loss (loss, metrics) of a whole batch, from sums as training adds them up."""

    def loss(*arrays, **hyper):
        loss_sum, weight, sums = loss_sums(*arrays, jnp.ones(len(arrays[0]), bool), **hyper)
        return loss_sum / jnp.maximum(weight, 1), metric_means(sums)

    return jax.jit(loss, static_argnames="aggregation")


def random_batch(seed, rows=6, slots=9):
    """(logp, old_logp, mask, advantage, share); the last row has no policy token."""
    rng = np.random.default_rng(seed)
    old_BT = -rng.exponential(1.0, (rows, slots))
    logp_BT = np.minimum(old_BT + rng.normal(0, 0.3, (rows, slots)), 0)
    mask_BT = rng.random((rows, slots)) < 0.6
    mask_BT[-1] = False
    share_B = rng.uniform(0, 0.8, rows) * rng.integers(0, 2, rows)
    return logp_BT, old_BT, mask_BT, rng.normal(size=rows), share_B
