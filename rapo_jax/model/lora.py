"""Low-rank adapters (LoRA): trained factors beside frozen weights.

A kernel W of a block acts as W + (alpha / rank) A B. A is random and B is 0 at first, so that
training starts from exactly the given model. Parameters with adapters have one more entry, `lora`:
the base is in the compute dtype, norm scales and adapters are in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rapo_jax.config import LORA_TARGETS, ModelSettings
from rapo_jax.model.sharding import KERNEL_AXES, compute_copy
from rapo_jax.types import Params

ADAPTERS = "lora"
"""Entry of the parameters, and the name of Flax's collection of a block's adapters."""


def trained(params: Params) -> Params:
    """The parameters that the optimizer changes: the adapters if there are any, else all."""
    return {ADAPTERS: params[ADAPTERS]} if ADAPTERS in params else params


def with_trained(params: Params, part: Params) -> Params:
    """`params` with `part` as their trained part."""
    return params | part if ADAPTERS in params else part


def init_adapters(settings: ModelSettings, key: jax.Array) -> Params:
    """Fresh adapters of every target: `a` [L, in, I] uniform within in ** -0.5, `b` [L, I, out] 0.

    Raises:
        ValueError: the rank is not less than both sides of an adapted kernel.
    """
    s, rank = settings, settings.lora.rank
    heads, kv_heads = s.heads * s.head_width, s.kv_heads * s.head_width
    sizes = {"width": s.width, "heads": heads, "kv_heads": kv_heads, "ffn": s.ffn}
    adapters = {}
    for number, target in enumerate(LORA_TARGETS):  # a target's draws do not depend on the others
        if target not in s.lora.targets:
            continue
        into, out = (sizes[axis] for axis in KERNEL_AXES[LORA_TARGETS[target]])
        if rank >= min(into, out):
            raise ValueError(
                f"model.lora.rank={rank}: target {target!r} is a {into} x {out} matrix, so its "
                f"adapter must be of less than {min(into, out)}; choose a lower rank"
            )
        draw = jax.random.uniform(
            jax.random.fold_in(key, number), (s.layers, into, rank), jnp.float32, -1.0, 1.0
        )
        a = draw * into**-0.5
        adapters[LORA_TARGETS[target]] = {
            "a": a,
            "b": jnp.zeros((s.layers, rank, out), jnp.float32),
        }
    return adapters


def attach(settings: ModelSettings, params: Params, adapters: Params) -> Params:
    """Parameters with adapters on a base that is frozen in the compute dtype."""
    return compute_copy(settings, params) | {ADAPTERS: adapters}


def detach(params: Params) -> Params:
    """Parameters without their adapters."""
    return {name: leaf for name, leaf in params.items() if name != ADAPTERS}


def adapted(
    settings: ModelSettings, output: jax.Array, x: jax.Array, adapter: dict[str, jax.Array]
) -> jax.Array:
    """`output` of a kernel at `x` plus its adapter's output; products in the compute dtype."""
    dtype = jnp.dtype(settings.dtype)
    low = jnp.matmul(x.astype(dtype), adapter["a"].astype(dtype))
    delta = jnp.matmul(low, adapter["b"].astype(dtype), preferred_element_type=jnp.float32)
    return output + (_scale(settings) * delta).astype(output.dtype)


def merged(settings: ModelSettings, params: Params) -> Params:
    """Parameters with the adapters added into the kernels: W + (alpha / rank) A B, float32."""
    blocks = dict(params["blocks"])
    for name, adapter in params[ADAPTERS].items():
        delta = jnp.matmul(adapter["a"], adapter["b"], precision="highest")
        kernel = blocks[name]["kernel"].astype(jnp.float32) + _scale(settings) * delta
        blocks[name] = blocks[name] | {"kernel": kernel}
    return detach(params) | {"blocks": blocks}


def _scale(settings: ModelSettings) -> float:
    return settings.lora.alpha / settings.lora.rank


def identity(params: Params) -> jax.Array:
    """A checksum for each parameter of the base, uint32: equal bits give equal numbers.

    The sum of all values' bits, weighted by position. Integer sums do not depend on their order, so
    the result is the same however the base is spread over devices.
    """

    def checksum(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        position = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            position = position * jnp.uint32(size) + index
        weight = (position * jnp.uint32(2_654_435_761)) | jnp.uint32(1)
        return jnp.sum(bits.astype(jnp.uint32) * weight, dtype=jnp.uint32)

    return jnp.stack([checksum(x) for x in jax.tree.leaves(detach(params))])


def rank_of(adapters: Params) -> int:
    """The rank of saved adapters."""
    return next(iter(adapters.values()))["a"].shape[-1]
