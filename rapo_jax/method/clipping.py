"""Clips of a ratio: PPO's, and those that keep a gradient beyond a bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rapo_jax.method.variants import choose_variant

CLIPPINGS = {
    "ppo": (False, False),
    "gppo": (True, True),
    "aepo": (False, True),
}
"""By name: whether a ratio below the lower bound, and one above the upper, keeps its gradient."""


def clipped_ratio(
    ratio_BT: jax.Array, low: jax.Array | float, high: jax.Array | float, *, clipping: str
) -> jax.Array:
    """The ratio within [low, high]; beyond a bound its gradient is 0, or bound / ratio times its
    own where `clipping` keeps it (GPPO, AEPO)."""
    below, above = choose_variant(CLIPPINGS, key="clipping", name=clipping)
    bounded_BT = jnp.clip(ratio_BT, low, high)
    if not (below or above):
        return bounded_BT
    fixed_BT = jax.lax.stop_gradient(ratio_BT)
    bound_BT = jax.lax.stop_gradient(bounded_BT)
    kept_BT = bound_BT + bound_BT / fixed_BT * (ratio_BT - fixed_BT)  # its value is the bound
    keeps_BT = jnp.where(ratio_BT < low, below, (ratio_BT > high) & above)
    return jnp.where(keeps_BT, kept_BT, bounded_BT)
