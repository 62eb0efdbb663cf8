"""The only host callback of the package: each device calls its own host with its own rows.

Plain `io_callback` under `jit` gathers the whole batch to one device and, on several processes,
runs on the first process only. So it is wrapped, alone, in a fully manual `shard_map`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROW_AXES = ("data", "fsdp")
"""Mesh axes that rows are spread over; rows are replicated over every other axis."""

Answer = TypeVar("Answer")
"""A pytree of arrays, rows first."""


def host_call(
    mesh: Mesh, callback: Callable[..., Answer], shapes: Answer, *row_arrays: jax.Array
) -> Answer:
    """Calls `callback` on the host from inside a program, with this device's rows of each array.

    Args:
      mesh: devices that the rows are on, axes `(data, fsdp, tensor)`.
      callback: numpy in, numpy out; never raises, for that would break the runtime.
      shapes: pytree of `ShapeDtypeStruct` of the whole answer, rows first.
      row_arrays: arrays with rows first.
    """
    rows = PartitionSpec(ROW_AXES)
    shards = mesh.shape[ROW_AXES[0]] * mesh.shape[ROW_AXES[1]]

    def local_shape(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((x.shape[0] // shards, *x.shape[1:]), x.dtype)

    local = jax.tree.map(local_shape, shapes)
    # A TPU takes back no answers of different ranks: vectors are sent as one column.
    tables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0], *(x.shape[1:] or (1,))), x.dtype), local
    )

    def on_host(*arrays: jax.Array) -> Answer:
        """jax hands the host its own arrays; indexing those would run programs in the callback."""
        answer = callback(*map(np.asarray, arrays))
        return jax.tree.map(lambda x, table: np.reshape(x, table.shape), answer, tables)

    def call(*arrays: jax.Array) -> Answer:
        answer = io_callback(on_host, tables, *arrays, ordered=False)
        return jax.tree.map(lambda x, shape: x.reshape(shape.shape), answer, local)

    def call_once(*arrays: jax.Array) -> Answer:
        """Rows replicated over the tensor axis are sent once, and their answer shared by a sum."""

        def zeros(*_: jax.Array) -> Answer:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), local)

        first = jax.lax.axis_index("tensor") == 0
        answer = jax.lax.cond(first, call, zeros, *arrays)
        # a sum of booleans is an integer
        return jax.tree.map(lambda x: jax.lax.psum(x, "tensor").astype(x.dtype), answer)

    function = call if mesh.shape["tensor"] == 1 else call_once
    answer = jax.shard_map(
        function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )(*row_arrays)  # fmt: skip
    return jax.lax.with_sharding_constraint(answer, NamedSharding(mesh, rows))
