"""How a run is split over chips, and the sizes of its model on each of them."""

from __future__ import annotations

import dataclasses
import functools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from rapo_jax.config import ModelSettings
from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.lora import ADAPTERS, detach, trained
from rapo_jax.model.sharding import MESH_AXES, layout
from rapo_jax.run.policy import policy_shapes
from rapo_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Split:
    """Parallel layout of a run on a slice: fsdp, tensor, slots per row shard, remat."""

    fsdp: int
    tensor: int
    slots: int
    """Rollouts at a time in each shard of rows."""
    remat: str

    @property
    def all_slots(self) -> int:
        """The slots of all chips together, `rollout.slots`."""
        return self.slots * self.fsdp

    @property
    def flags(self) -> str:
        return (
            f"--config.mesh.data=1 --config.mesh.fsdp={self.fsdp} "
            f"--config.mesh.tensor={self.tensor} --config.rollout.slots={self.all_slots} "
            f"--config.model.remat={self.remat}"
        )


class Shape(NamedTuple):
    """Sizes of a model on one chip."""

    itemsize: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    matrix: float
    """Parameters that a token is multiplied with, on all chips, without adapters."""
    sampled: float
    """Bytes of the sampling weights."""
    trained: float
    """Parameters that an update changes, in the training layout."""
    frozen: float
    """Bytes of the frozen base, in the training layout; 0 without adapters."""
    adapters: float
    """Parameters of adapters, on all chips."""
    adapted: tuple[int, ...]
    """Output width of each kernel of a layer that has an adapter."""

    @property
    def passed_back(self) -> float:
        """Products with `matrix` in the backward pass for each one in the forward pass.

        A frozen matrix has no gradient; only the gradient of its input is computed.
        """
        return 1 if self.adapters else 2


@functools.cache
def model_shapes(model: ModelSettings) -> tuple[Params, Params]:
    """Shapes of the parameters at the start of training, and of the sampling weights."""
    shapes = policy_shapes(model)
    sampled = detach(shapes) if model.lora.merge else shapes
    return shapes, jax.eval_shape(partial(sampling_copy, model), sampled)


@functools.cache
def shape_on(model: ModelSettings, *, fsdp: int, tensor: int) -> Shape:
    """Sizes of `model` on a mesh of 1 x `fsdp` x `tensor`.

    Raises:
        ValueError: `tensor` does not divide the query heads, or the rank of adapters is too high.
    """
    mesh = AbstractMesh((1, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    shapes, copies = model_shapes(model)

    def size(tree: Params, name: str, *, in_bytes: bool) -> float:
        shardings = jax.tree.leaves(layout(mesh, model, tree, name=name))
        return sum(
            math.prod(sharding.shard_shape(x.shape)) * (x.dtype.itemsize if in_bytes else 1)
            for x, sharding in zip(jax.tree.leaves(tree), shardings, strict=True)
        )

    def split(count: int) -> int:
        return count // tensor if count % tensor == 0 else count

    looked_up = 0 if model.tied else model.vocab * model.width
    adapters = shapes.get(ADAPTERS, {})
    shardings = layout(mesh, model, shapes, name="sampling").get(ADAPTERS, {})
    return Shape(
        itemsize=jnp.dtype(model.dtype).itemsize,
        heads=model.heads // tensor,
        kv_heads=split(model.kv_heads),
        ffn=split(model.ffn),
        vocab=split(model.vocab),
        matrix=sum(leaf.size for leaf in jax.tree.leaves(detach(shapes))) - looked_up,
        sampled=size(copies, "sampling", in_bytes=True),
        trained=size(trained(shapes), "training", in_bytes=False),
        frozen=size(detach(shapes), "training", in_bytes=True) if adapters else 0,
        adapters=sum(leaf.size for leaf in jax.tree.leaves(adapters)),
        adapted=tuple(
            shardings[name]["b"].shard_shape(pair["b"].shape)[-1] for name, pair in adapters.items()
        ),
    )
