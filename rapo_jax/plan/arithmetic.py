"""What a run needs of every chip, from shapes alone: bytes.

Parameters, moments, gradients, the copy to sample with and the cache are exact: they follow from
the layouts of `model/sharding.py`. Temporaries are those of the largest arrays: the compiler's plan
(`programs.py`) is what counts where there is one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.sharding import MESH_AXES, compute_copy, layout
from rapo_jax.model.transformer import init_params


@dataclasses.dataclass(frozen=True)
class Way:
    """How a run is laid out on a slice; each is a key of the config."""

    fsdp: int
    tensor: int
    waves: int
    remat: str

    @property
    def flags(self) -> str:
        return (
            f"--config.mesh.data=1 --config.mesh.fsdp={self.fsdp} "
            f"--config.mesh.tensor={self.tensor} --config.rollout.waves={self.waves} "
            f"--config.model.remat={self.remat}"
        )


class Bytes(NamedTuple):
    """Of one chip."""

    parameters: float
    optimizer: float
    gradients: float
    """The sums over micro-batches, and those of the one at hand."""
    copy: float
    cache: float
    rollout: float
    """Temporaries of the rollout."""
    update: float
    """Temporaries of the update."""

    @property
    def rollout_peak(self) -> float:
        return self.parameters + self.optimizer + self.copy + self.cache + self.rollout

    @property
    def update_peak(self) -> float:
        """The copy to sample with is still there."""
        return self.parameters + self.optimizer + self.copy + self.gradients + self.update

    @property
    def peak(self) -> float:
        return max(self.rollout_peak, self.update_peak)


class Shape(NamedTuple):
    """Sizes on one chip."""

    itemsize: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    matrix: float
    """Parameters that a token is multiplied with, on all chips."""
    sampled: float
    """Bytes of the copy to sample with."""
    trained: float
    """Parameters in the training layout."""


@functools.cache
def _shapes(model: ModelSettings) -> tuple[Any, Any]:
    """Those of the master weights and of the copy to sample with."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return shapes, jax.eval_shape(partial(compute_copy, model), shapes)


@functools.cache
def shape_on(model: ModelSettings, *, fsdp: int, tensor: int) -> Shape:
    """Raises ValueError where `tensor` does not divide the heads."""
    mesh = AbstractMesh((1, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    shapes, copies = _shapes(model)

    def size(tree: Any, name: str, *, in_bytes: bool) -> float:
        where: Any = layout(mesh, model, shapes, name=name)  # type: ignore[arg-type]
        return sum(
            math.prod(at.shard_shape(x.shape)) * (x.dtype.itemsize if in_bytes else 1)
            for x, at in zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True)
        )

    kv_heads = model.kv_heads // tensor if model.kv_heads % tensor == 0 else model.kv_heads
    looked_up = 0 if model.tied else model.vocab * model.width
    return Shape(
        jnp.dtype(model.dtype).itemsize,
        model.heads // tensor,
        kv_heads,
        model.ffn // tensor if model.ffn % tensor == 0 else model.ffn,
        model.vocab // tensor if model.vocab % tensor == 0 else model.vocab,
        sum(leaf.size for leaf in jax.tree.leaves(shapes)) - looked_up,
        size(copies, "sampling", in_bytes=True),
        size(shapes, "training", in_bytes=False),
    )


def cache_slots(s: Settings) -> int:
    """Token slots of a row's cache: a row, and room for the widest span (`open_tape`)."""
    r = s.rollout
    spans = (r.prompt_tokens, r.step_tokens, r.observation_tokens, r.retrieved_tokens)
    return r.max_tokens + max(spans)


def sampled_tokens(s: Settings) -> int:
    """Tokens a row may sample."""
    r = s.rollout
    return min((r.max_calls + 1) * r.step_tokens, r.max_tokens - r.prompt_tokens)


def micro_rows(s: Settings, shards: int) -> int:
    """Rows of the widest micro-batch, as the update cuts them."""
    rows = max(s.rl.micro_tokens // s.rl.buckets[-1], shards)
    return rows - rows % shards


def bytes_on(s: Settings, model: ModelSettings, shape: Shape, way: Way, *, plain: bool) -> Bytes:
    """`plain`: attention over whole rows writes its scores to memory (no kernel of the platform).

    Decoding and reading spans always do.
    """
    r, rows = s.rollout, s.rollout.questions * s.rollout.group_size // way.waves // way.fsdp
    item, H, D, L = shape.itemsize, model.head_width, model.width, model.layers
    slots = cache_slots(s)
    cache = rows * slots * 2 * shape.kv_heads * H * item * L
    span = max(r.observation_tokens, r.retrieved_tokens if s.n_hybrid else 0)
    read = rows * span * (shape.heads * slots * (4 + 4 + item) + (2 * shape.ffn + 4 * D) * item)
    drawn = rows * shape.vocab * 3 * 4
    width = s.rl.buckets[-1]
    own = micro_rows(s, way.fsdp) // way.fsdp
    return Bytes(
        4 * shape.trained,
        8 * shape.trained,
        8 * shape.trained,
        shape.sampled,
        cache,
        max(read, drawn),
        _update_bytes(model, shape, way.remat, rows=own, width=width, plain=plain),
    )


def _update_bytes(
    model: ModelSettings, shape: Shape, remat: str, *, rows: int, width: int, plain: bool
) -> float:
    """What the backward pass keeps, one layer's own arrays, and the chunk of logits at hand."""
    item, D, tokens = shape.itemsize, model.width, rows * width
    heads = (shape.heads + 2 * shape.kv_heads) * model.head_width
    scores = rows * shape.heads * width * width if plain else 0
    projected = (heads + shape.heads * model.head_width + 2 * D + 2 * shape.ffn) * item
    kept = {
        "none": tokens * (projected + (4 * D + shape.ffn) * item) + scores * (4 + item),
        "dots": tokens * (projected + D * item) + scores * 4,
        "dots_no_batch": tokens * (projected + D * item),
        "offload": tokens * D * item,
        "full": tokens * D * item,
    }[remat]
    layer = 2 * tokens * (projected + shape.ffn * item) + scores * (4 + 4 + item)
    chunk = min(model.score_chunk, width)
    logits = rows * chunk * shape.vocab * 3 * 4
    whole = shape.sampled / model.layers * 2  # of one layer, gathered over fsdp, and its gradient
    head = shape.vocab * D * (2 * item + 4)  # embedding and head, gathered, and a gradient
    return model.layers * kept + max(layer, logits) + whole + head
