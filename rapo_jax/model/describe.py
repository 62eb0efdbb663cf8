"""Lines of the start-up log about a model: sizes and layouts of its parameters, and notes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from rapo_jax.config import ModelSettings
from rapo_jax.model.attention import choose
from rapo_jax.model.cached_attention import FORMS
from rapo_jax.model.lora import ADAPTERS
from rapo_jax.model.sharding import LAYOUTS, layout, name_of
from rapo_jax.types import Params


def describe(mesh: Mesh, model: ModelSettings, params: Params) -> tuple[list[str], list[str]]:
    """(table, notes): a line for each parameter (shape, layouts, bytes a device), and remarks.

    Bytes are those of the training weights (float32, or a frozen base's dtype) plus those of the
    sampling weights (in `model.dtype`).

    Raises:
        ValueError: `model.attention` names a kernel that these devices or this model cannot have.
    """
    train, sample = (jax.tree.leaves(layout(mesh, model, params, name=name)) for name in LAYOUTS)
    width = jnp.dtype(model.dtype).itemsize
    table = [f"{'parameter':<30}{'shape':<22}{'training':<28}{'sampling':<28}bytes a device"]
    weight_bytes = moment_bytes = copy_bytes = 0
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for (path, leaf), training, sampling in zip(leaves, train, sample, strict=True):
        name = name_of(path)
        frozen = ADAPTERS in params and not name.startswith(ADAPTERS)
        size = math.prod(training.shard_shape(leaf.shape))
        weights = leaf.dtype.itemsize * size if frozen else 4 * size
        copy = width * math.prod(sampling.shard_shape(leaf.shape))
        weight_bytes, copy_bytes = weight_bytes + weights, copy_bytes + copy
        moment_bytes += 0 if frozen else 2 * weights
        table.append(
            f"{name:<30}{leaf.shape!s:<22}{_spec(training):<28}{_spec(sampling):<28}"
            f"{weights:,} + {copy:,}"
        )
    notes = [
        f"{' x '.join(f'{n} {axis}' for axis, n in mesh.shape.items())} devices; on each "
        f"{(weight_bytes + moment_bytes) / 1e6:,.3g} MB of weights and Adam moments, "
        f"{copy_bytes / 1e6:,.3g} MB of sampling weights in {model.dtype}"
    ]
    if ADAPTERS in params:
        adapters = sum(leaf.size for leaf in jax.tree.leaves(params[ADAPTERS]))
        notes.append(
            f"model.lora.rank={model.lora.rank}: {adapters / 1e6:,.3g} million adapter weights are "
            f"trained, the base is frozen in {model.dtype}"
        )
    attention = choose(model, platform=mesh.devices.flat[0].platform)
    if model.kv_heads % (tensor := mesh.shape["tensor"]):
        cached = FORMS[attention.form].heads_on(model.kv_heads, tensor)
        notes.append(
            f"mesh.tensor={tensor} does not divide the {model.kv_heads} kv heads: every device "
            f"holds the weights of all, and {cached} of them in its cache"
        )
    chosen = f"attention: {attention.name} of whole rows, {attention.form} in decoding"
    notes.append(attention.note or chosen)
    return table, notes


def _spec(sharding: NamedSharding) -> str:
    return "(" + ", ".join(str(axis or "-") for axis in sharding.spec) + ")"
