"""The host callback of a rollout: the only callback here.

Plain `io_callback` under `jit` gathers the whole batch to one device and, on several processes,
runs on the first process only. So a rollout is mapped over the row axes (`on_row_shards`): each
shard works through its own rows and calls its own host, and none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh

from rapo_jax.model.sharding import EVERYWHERE

Answer = TypeVar("Answer")
"""A pytree of arrays, rows or slots first."""


def host_call(
    mesh: Mesh,
    callback: Callable[..., Answer],
    shapes: Answer,
    needed_U: jax.Array,
    request: object,
) -> Answer:
    """Calls `callback` on this shard's host, from inside `on_row_shards`; zeros if not needed.

    Args:
      callback: numpy in, numpy out; never raises, for that would break the runtime.
      shapes: pytree of `ShapeDtypeStruct` of the answer, slots first.
      needed_U: slots that need an answer; the host is called if there is one.
      request: pytree of arrays, slots first.
    """
    # A TPU takes back no answers of different ranks: vectors are sent as one column.
    tables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0], *(x.shape[1:] or (1,))), x.dtype), shapes
    )

    def on_host(request: object) -> Answer:
        """jax hands the host its own arrays; indexing those would run programs in the callback."""
        answer = callback(jax.tree.map(np.asarray, request))
        return jax.tree.map(lambda x, table: np.reshape(x, table.shape), answer, tables)

    def call(request: object) -> Answer:
        answer = io_callback(on_host, tables, request, ordered=False)
        return jax.tree.map(lambda x, shape: x.reshape(shape.shape), answer, shapes)

    def zeros(_: object) -> Answer:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def call_once(request: object) -> Answer:
        """Slots replicated over the tensor axis are sent once, and their answer shared by a sum."""
        first = jax.lax.axis_index("tensor") == 0
        answer = jax.lax.cond(first, call, zeros, request)
        # a sum of booleans is an integer
        return jax.tree.map(lambda x: jax.lax.psum(x, "tensor").astype(x.dtype), answer)

    if mesh.shape["tensor"] > 1:
        call_shard = partial(
            jax.shard_map,
            axis_names={"tensor"},
            in_specs=EVERYWHERE,
            out_specs=EVERYWHERE,
            check_vma=False,
        )(call_once)
    else:
        call_shard = call
    return jax.lax.cond(needed_U.any(), call_shard, zeros, request)
