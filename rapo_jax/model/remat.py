"""Rematerialisation of layers in the backward pass, chosen by `model.remat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax

from rapo_jax.config import ModelSettings

Layer: TypeAlias = Callable[..., tuple[jax.Array, None]]

_known = jax.checkpoint_policies

POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": _known.dots_saveable,
    "dots_no_batch": _known.dots_with_no_batch_dims_saveable,
    "offload": _known.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": _known.nothing_saveable,
}
"""model.remat -> JAX's checkpoint policy, from the most to the least device memory.

`none` keeps everything, attention scores too; `dots` keeps the products of matrices;
`dots_no_batch` only those with weights, so that no scores are kept; `offload` the same ones, in the
host's memory; `full` nothing but the input of each layer.
"""


def remat(settings: ModelSettings, layer: Layer) -> Layer:
    """`layer`, the body of the scan over layers, with rematerialisation by `model.remat`."""
    policy = POLICIES[settings.remat]
    if policy is None:
        return layer
    # A scan keeps forward and backward pass apart; where it is unrolled, the compiler could merge
    # equal computations of both and keep their results after all.
    return jax.checkpoint(layer, policy=policy, prevent_cse=settings.layer_unroll > 1)
