"""The only host callback of the package: each device calls its own host with its own rows.

Plain `io_callback` under `jit` gathers the whole batch to one device and, on several processes,
runs on the first process only. So it is wrapped, alone, in a fully manual `shard_map`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROW_AXES = ("data", "fsdp")
"""Mesh axes that rows are spread over; rows are replicated over every other axis."""


def host_call(mesh: Mesh, callback: Callable[..., Any], result: Any, *row_arrays: jax.Array) -> Any:
    """Calls `callback` on the host from inside a program, with this device's rows of each array.

    Args:
        mesh: devices that the rows live on, axes `(data, fsdp, tensor)`.
        callback: numpy in, numpy out; total: a callback that raises breaks the runtime.
        result: pytree of `ShapeDtypeStruct` of the whole answer, rows first.
        row_arrays: arrays with rows first.
    """
    rows = PartitionSpec(ROW_AXES)
    shards = mesh.shape[ROW_AXES[0]] * mesh.shape[ROW_AXES[1]]

    def shape_here(whole: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((whole.shape[0] // shards, *whole.shape[1:]), whole.dtype)

    here = jax.tree.map(shape_here, result)

    # A TPU takes back no answers of different ranks, so that vectors come as one column.
    tables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0], *(x.shape[1:] or (1,))), x.dtype), here
    )

    def ring(*arrays: jax.Array) -> Any:
        """jax hands the host its own arrays; indexing those would run programs in the callback."""
        answer = callback(*map(np.asarray, arrays))
        return jax.tree.map(lambda x, table: np.reshape(x, table.shape), answer, tables)

    def ask(*arrays: jax.Array) -> Any:
        answer = io_callback(ring, tables, *arrays, ordered=False)
        return jax.tree.map(lambda x, shape: x.reshape(shape.shape), answer, here)

    def once_per_row(*arrays: jax.Array) -> Any:
        """Rows replicated over the tensor axis are asked for once and shared by a sum."""

        def nothing(*_: jax.Array) -> Any:
            return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), here)

        def shared(x: jax.Array) -> jax.Array:
            return jax.lax.psum(x, "tensor").astype(x.dtype)  # a sum of booleans is an integer

        first = jax.lax.axis_index("tensor") == 0
        return jax.tree.map(shared, jax.lax.cond(first, ask, nothing, *arrays))

    answer = jax.shard_map(
        ask if mesh.shape["tensor"] == 1 else once_per_row,
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
        check_vma=False,
    )(*row_arrays)
    return jax.lax.with_sharding_constraint(answer, NamedSharding(mesh, rows))
