"""The device mesh, and how rows and parameters are sharded over it.

Rows are split over data and fsdp. Parameters have two layouts: *training* splits master weights,
gradients and Adam moments over fsdp x tensor; *sampling* splits a copy in the compute dtype over
tensor alone, because decoding over a global mesh would gather the weights at every token.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from rapo_jax.config import ModelSettings
from rapo_jax.types import Params

Tree = TypeVar("Tree")

MESH_AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
"""Mesh axes that rows are spread over; rows are replicated over every other axis."""
ROWS = PartitionSpec(ROW_AXES)
EVERYWHERE = PartitionSpec()

KERNEL_AXES: Mapping[str, tuple[str, str]] = {
    "query": ("width", "heads"),
    "key": ("width", "kv_heads"),
    "value": ("width", "kv_heads"),
    "output": ("heads", "width"),
    "gate": ("width", "ffn"),
    "up": ("width", "ffn"),
    "down": ("ffn", "width"),
}
"""Linear map of a block -> logical axes of its input and output."""

LOGICAL_AXES: Mapping[str, tuple[str, ...]] = {
    "embed_VD": ("vocab", "width"),
    "head_DV": ("width", "vocab"),
    **{f"{name}/kernel": ("layer", *axes) for name, axes in KERNEL_AXES.items()},
    **{f"{name}/bias": ("layer", out) for name, (_, out) in KERNEL_AXES.items()},
    **{f"{name}/a": ("layer", into, "rank") for name, (into, _) in KERNEL_AXES.items()},
    **{f"{name}/b": ("layer", "rank", out) for name, (_, out) in KERNEL_AXES.items()},
}
"""End of a parameter's path -> its logical axes; `a` and `b` are the factors of an adapter.

Norm scales are not here: they are replicated.
"""

_SAMPLING = dict.fromkeys(("heads", "kv_heads", "ffn", "vocab"), "tensor")
LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "training": {"width": "fsdp", **_SAMPLING},
    "sampling": _SAMPLING,
}
"""Logical axis -> mesh axis, for each layout; other axes are not split."""

ACTIVATIONS: Mapping[str, str | tuple[str, ...]] = {
    "rows": ROW_AXES,
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
}
"""Logical axis of an activation -> mesh axes, in both layouts."""


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> Mesh:
    """A mesh of `data` x `fsdp` x `tensor` devices; one of them may be -1 and takes what is left.

    Axes are Auto: the compiler shards what we do not. Devices of one process are neighbours, so
    that tensor parallelism stays inside a host and each process has one block of rows.

    Raises:
        ValueError: the numbers do not multiply to the number of devices, or mesh.tensor crosses
        processes.
    """
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda device: device.process_index
    )
    shape = [data, fsdp, tensor]
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and known > 0:
        if len(devices) % known:
            raise ValueError(_indivisible(shape, len(devices)))
        shape[shape.index(-1)] = len(devices) // known
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor}: their product must be the "
            f"number of devices, {len(devices)}; set one of them, and only one, to -1: it takes "
            "what is left"
        )
    each = len(devices) // len({device.process_index for device in devices})
    if each % shape[2]:
        raise ValueError(
            f"mesh.tensor={tensor}: tensor parallelism stays inside a process, so it must divide "
            f"the {each} devices of each; use fewer ways of it and more of mesh.fsdp"
        )
    return Mesh(np.array(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _indivisible(shape: Sequence[int], devices: int) -> str:
    """Why a mesh whose one -1 has no value is refused, and what would fit these devices."""
    wanted = {f"mesh.{axis}": n for axis, n in zip(MESH_AXES, shape, strict=True) if n > 1}
    fitting, left = [], devices
    for key, n in wanted.items():
        fits = math.gcd(n, left)
        fitting.append(f"--config.{key}={fits}")
        left //= fits
    named = ", ".join(f"{key}={n}" for key, n in wanted.items())
    what = "it" if len(wanted) == 1 else "their product"
    return f"{named}: {what} must divide the number of devices, {devices}; set {' '.join(fitting)}"


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Code traced inside may use `constrain` and `on_shards`; one device needs neither."""
    if mesh is None or mesh.size == 1:
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def ambient_mesh() -> AbstractMesh | None:
    """The mesh of the enclosing `on_mesh`; None outside, and where all axes are mapped by hand."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or not mesh.auto_axes else mesh


def spec_of(mesh: AbstractMesh, *logical: str | None) -> PartitionSpec:
    """The partition of an activation with these logical axes (ACTIVATIONS); None is not split.

    Axes that are mapped by hand (`on_row_shards`) split nothing more.
    """

    def parts(axis: str | None) -> tuple[str, ...] | str | None:
        wanted = () if axis is None else ACTIVATIONS[axis]
        names = (wanted,) if isinstance(wanted, str) else wanted
        return tuple(name for name in names if name in mesh.auto_axes) or None

    return PartitionSpec(*map(parts, logical))


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """`x`, split as ACTIVATIONS says inside `on_mesh`, unchanged outside.

    An axis that its mesh axes do not divide is not split.
    """
    mesh = ambient_mesh()
    if mesh is None:
        return x
    spec = [
        None if parts is None or size % _ways(mesh, parts) else parts
        for parts, size in zip(spec_of(mesh, *logical), x.shape, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _ways(mesh: AbstractMesh, parts: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[part] for part in ([parts] if isinstance(parts, str) else parts))


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays with rows first: split over the data and fsdp axes."""
    return NamedSharding(mesh, ROWS)


def on_row_shards(
    mesh: Mesh | AbstractMesh, function: Callable[..., Tree], specs: tuple[object, ...]
) -> Callable[..., Tree]:
    """Maps `function` over the row shards (`jax.shard_map`); results have rows as first axis.

    Inside, the compiler still splits heads and vocabulary over the tensor axis.

    Args:
        mesh: axes `(data, fsdp, tensor)`.
        specs: ROWS or EVERYWHERE for each argument, or a pytree (or prefix) of them.
    """
    by_hand = set(ROW_AXES if mesh.shape["tensor"] > 1 else mesh.axis_names)
    return jax.shard_map(
        function, mesh=mesh, axis_names=by_hand, in_specs=specs, out_specs=ROWS, check_vma=False
    )


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that rows are split into; batches of rows are multiples of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Tree, shardings: object) -> Tree:
    """Puts arrays onto devices as `shardings` says: one for all, or a pytree (or prefix) of them.

    With several processes, an array that is not global yet is whole and equal on each of them, and
    each process puts the shards of its own devices.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(x: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        whole = x if is_key else np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, jax.tree.broadcast(shardings, tree))


def place_local_rows(tree: Tree, sharding: NamedSharding) -> Tree:
    """Global arrays from the rows of each process, in the order of processes."""
    if jax.process_count() == 1:
        return place(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def layout(mesh: Mesh | AbstractMesh, model: ModelSettings, params: Params, *, name: str) -> Params:
    """The sharding of every parameter in layout `name` of LAYOUTS, as a pytree like `params`.

    An axis that its mesh axis does not divide is not split; kv heads are split only between heads.

    Args:
        params: arrays or shapes (`jax.eval_shape` of `init_params`).

    Raises:
        ValueError: `mesh.tensor` does not divide the query heads.
    """
    tensor = mesh.shape["tensor"]
    if model.heads % tensor:
        raise ValueError(
            f"mesh.tensor={tensor}: it must divide model.heads={model.heads}; "
            "use fewer ways of tensor parallelism and more of mesh.fsdp"
        )
    mesh_axis_of = LAYOUTS[name]

    def axis(logical: str, size: int) -> str | None:
        mesh_axis = mesh_axis_of.get(logical)
        units = model.kv_heads if logical == "kv_heads" else size
        return mesh_axis if mesh_axis and units % mesh.shape[mesh_axis] == 0 else None

    def sharding(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        end = "/".join(name_of(path).split("/")[-2:])
        logical = LOGICAL_AXES.get(end, ())
        logical = logical[len(logical) - leaf.ndim :]  # unstacked layers have no layer axis
        spec = [axis(part, size) for part, size in zip(logical, leaf.shape, strict=False)]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, params)


def state_layout(
    mesh: Mesh, optimizer: optax.GradientTransformation, params: Params, params_layout: Params
) -> object:
    """The sharding of the optimizer's state: moments as their parameters, counters replicated."""
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        params_layout,
        transform_non_params=lambda _: replicated(mesh),
    )


def compute_copy(model: ModelSettings, params: Params) -> Params:
    """Parameters in the compute dtype, for sampling: exactly the values that scoring computes with.

    Norm scales stay float32, as scoring uses them.
    """
    dtype = jnp.dtype(model.dtype)

    def cast(path: KeyPath, x: jax.Array) -> jax.Array:
        return x if name_of(path).endswith("scale") else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def name_of(path: KeyPath) -> str:
    """A pytree path as text, such as `blocks/query/kernel`."""
    return "/".join(str(getattr(part, "key", part)) for part in path)
