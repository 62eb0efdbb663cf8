"""What a run needs of every chip, from shapes alone: bytes.

Parameters, moments, gradients, the copy to sample with and the cache are exact: they follow from
the layouts of `model/sharding.py`. Temporaries are those of the largest arrays: the compiler's plan
(`programs.py`) is what counts where there is one.

With `model.lora.rank` the weights are a frozen base in the compute dtype, which has no moments and
no gradients; float32 adapters have.
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
from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.lora import ADAPTERS, detach, trained
from rapo_jax.model.sharding import MESH_AXES, layout
from rapo_jax.train.policy import policy_shapes


@dataclasses.dataclass(frozen=True)
class Way:
    """How a run is laid out on a slice; each is a key of the config."""

    fsdp: int
    tensor: int
    chunks: int
    remat: str

    @property
    def flags(self) -> str:
        return (
            f"--config.mesh.data=1 --config.mesh.fsdp={self.fsdp} "
            f"--config.mesh.tensor={self.tensor} --config.rollout.chunks={self.chunks} "
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
    """Parameters that a token is multiplied with, on all chips, adapters apart."""
    sampled: float
    """Bytes of the copy to sample with."""
    trained: float
    """Parameters that an update changes, in the training layout."""
    frozen: float
    """Bytes of the base that no update changes, in the training layout."""
    adapters: float
    """Parameters of adapters, on all chips."""
    adapted: tuple[int, ...]
    """Width of the output of each kernel of a layer that has an adapter."""

    @property
    def passed_back(self) -> float:
        """Products of a backward pass for one of the forward pass, with the matrices at hand.

        A frozen matrix needs no gradient of itself, only that of what it is multiplied with.
        """
        return 1 if self.adapters else 2


@functools.cache
def _shapes(model: ModelSettings) -> tuple[Any, Any]:
    """Those that a training starts from and of the copy to sample with."""
    shapes = policy_shapes(model)
    sampled = detach(shapes) if model.lora.merge else shapes
    return shapes, jax.eval_shape(partial(sampling_copy, model), sampled)


@functools.cache
def shape_on(model: ModelSettings, *, fsdp: int, tensor: int) -> Shape:
    """Raises ValueError where `tensor` does not divide the heads, or a rank is too high."""
    mesh = AbstractMesh((1, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    shapes, copies = _shapes(model)

    def size(tree: Any, name: str, *, in_bytes: bool) -> float:
        where: Any = layout(mesh, model, tree, name=name)
        return sum(
            math.prod(at.shard_shape(x.shape)) * (x.dtype.itemsize if in_bytes else 1)
            for x, at in zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True)
        )

    kv_heads = model.kv_heads // tensor if model.kv_heads % tensor == 0 else model.kv_heads
    looked_up = 0 if model.tied else model.vocab * model.width
    adapters: Any = shapes.get(ADAPTERS, {})
    cut: Any = layout(mesh, model, shapes, name="sampling").get(ADAPTERS, {})
    return Shape(
        jnp.dtype(model.dtype).itemsize,
        model.heads // tensor,
        kv_heads,
        model.ffn // tensor if model.ffn % tensor == 0 else model.ffn,
        model.vocab // tensor if model.vocab % tensor == 0 else model.vocab,
        sum(leaf.size for leaf in jax.tree.leaves(detach(shapes))) - looked_up,
        size(copies, "sampling", in_bytes=True),
        size(trained(shapes), "training", in_bytes=False),
        size(detach(shapes), "training", in_bytes=True) if adapters else 0,
        sum(leaf.size for leaf in jax.tree.leaves(adapters)),
        tuple(cut[name]["b"].shard_shape(pair["b"].shape)[-1] for name, pair in adapters.items()),
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

    Decoding and reading spans always do, of `rollout.absorb_chunk` tokens at a time.
    """
    r, rows = s.rollout, s.rollout.questions * s.rollout.group_size // way.chunks // way.fsdp
    item, H, D, L = shape.itemsize, model.head_width, model.width, model.layers
    slots = cache_slots(s)
    cache = rows * slots * 2 * shape.kv_heads * H * item * L
    span = max(r.observation_tokens, r.retrieved_tokens if s.n_hybrid else 0)
    scores, others = shape.heads * slots * (4 + 4 + item), (2 * shape.ffn + 4 * D) * item
    prompts = rows / r.group_size * r.prompt_tokens * (scores * plain + others)
    read = rows * min(span, r.absorb_chunk) * (scores + others)
    drawn = rows * shape.vocab * 3 * 4
    width = s.rl.buckets[-1]
    own = micro_rows(s, way.fsdp) // way.fsdp
    return Bytes(
        4 * shape.trained + shape.frozen,
        8 * shape.trained,
        8 * shape.trained,
        shape.sampled,
        cache,
        max(prompts, read, drawn),
        _update_bytes(model, shape, way.remat, rows=own, width=width, plain=plain),
    )


def _update_bytes(
    model: ModelSettings, shape: Shape, remat: str, *, rows: int, width: int, plain: bool
) -> float:
    """What the backward pass keeps, one layer's own arrays, and the chunk of logits at hand."""
    item, D, tokens = shape.itemsize, model.width, rows * width
    heads = (shape.heads + 2 * shape.kv_heads) * model.head_width
    scores = rows * shape.heads * width * width if plain else 0
    shares = 4 * tokens * sum(shape.adapted)  # products with adapters come as float32
    low = tokens * len(shape.adapted) * model.lora.rank * item
    projected = (heads + shape.heads * model.head_width + 2 * D + 2 * shape.ffn) * item
    kept = {
        "none": tokens * (projected + (4 * D + shape.ffn) * item) + scores * (4 + item) + low,
        "dots": tokens * (projected + D * item) + scores * 4 + low + shares,
        "dots_no_batch": tokens * (projected + D * item) + low + shares,
        "offload": tokens * D * item,
        "full": tokens * D * item,
    }[remat]
    layer = 2 * tokens * (projected + shape.ffn * item) + scores * (4 + 4 + item)
    layer += low + 4 * tokens * max(shape.adapted, default=0)
    chunk = min(model.score_chunk, width)
    logits = rows * chunk * shape.vocab * 3 * 4
    # Gathered over fsdp, one layer and its gradient; embedding and head, and a gradient.
    whole = shape.sampled / model.layers * (1 if shape.adapters else 2)
    head = shape.vocab * D * (2 * item + (0 if shape.adapters else 4))
    return model.layers * kept + max(layer, logits) + whole + head
