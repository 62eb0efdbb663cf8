"""The mesh, and where rows and parameters live on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices on the data axis. Axes are Auto: the compiler places what we do not."""
    devices = list(jax.devices() if devices is None else devices)
    shape = (len(devices), 1, 1)
    return Mesh(np.array(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def rows(mesh: Mesh) -> NamedSharding:
    """Rows spread over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts every array of a pytree where `sharding` says."""
    return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)
