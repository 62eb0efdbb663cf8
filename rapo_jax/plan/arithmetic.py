"""Bytes that a run needs on each chip, computed from shapes alone.

Parameters, moments, gradients, the sampling weights (in `model.dtype`) and the cache are exact:
they follow from the layouts of `model/sharding.py`. Temporaries are estimated from the largest
arrays; where there is a compiled program (`programs.py`), its numbers are the better ones.

With `model.lora.rank` the weights are a frozen base in the compute dtype, without moments and
gradients, and float32 adapters, which have both.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.attention import Choice
from rapo_jax.model.cached_attention import BLOCK, FORMS, padded_positions
from rapo_jax.model.scoring import positions_at_a_time
from rapo_jax.plan.shapes import Shape, Split
from rapo_jax.rollout.slots import chunk_of
from rapo_jax.train.micro_batches import NARROW_WIDTHS

TAPE_BYTES = 5 * 4
"""Bytes of a position of a tape: token, source, step, log-probability, entropy."""


class Bytes(NamedTuple):
    """Bytes on one chip, by what they hold."""

    parameters: float
    optimizer: float
    gradients: float
    """The sums over micro-batches, and those of the current one."""
    reference: float
    """Weights at the start of RL, for the KL penalty."""
    copy: float
    cache: float
    """Keys and values of the slots."""
    prompts: float
    """Keys and values of all prompts, which are read once and kept."""
    rollout: float
    """Tapes and temporaries of the rollout."""
    update: float
    """Temporaries of the update."""
    scratch: float
    """The most that cuDNN's backward pass of attention takes besides its results, of any width of
    micro-batches; `update` counts it where a layer needs more than the logits. Compilers do not."""

    @property
    def rollout_peak(self) -> float:
        return self._held + self.cache + self.prompts + self.rollout

    @property
    def update_peak(self) -> float:
        """Upper bound: counts the sampling weights too, although the trainer frees them before the
        update."""
        return self._held + self.gradients + self.update

    @property
    def _held(self) -> float:
        return self.parameters + self.optimizer + self.reference + self.copy

    @property
    def peak(self) -> float:
        return max(self.rollout_peak, self.update_peak)


def cache_bytes(model: ModelSettings, kv_heads: int) -> int:
    """Bytes of the keys and values of a token on a chip that stores `kv_heads` heads."""
    return 2 * kv_heads * model.head_width * jnp.dtype(model.dtype).itemsize * model.layers


def tape_positions(s: Settings) -> int:
    """Positions of a tape that is being written, see `rollout.slots.open_slots`."""
    return s.rollout.max_tokens + chunk_of(s.rollout)


def shard_rows(s: Settings, split: Split) -> int:
    """Rollouts of a shard of rows."""
    return s.rollout.questions * s.rollout.group_size // split.fsdp


def sampled_tokens(s: Settings) -> int:
    """The most tokens that a row may sample."""
    r = s.rollout
    return min((r.max_calls + 1) * r.step_tokens, r.max_tokens - r.prompt_tokens)


def micro_shapes(s: Settings, shards: int) -> dict[int, int]:
    """Rows of a micro-batch on all chips, by its width, where enough rows are left for it."""
    narrow = [width for width in NARROW_WIDTHS if width < s.rl.buckets[0]]
    return {
        width: shards * max(s.rl.micro_tokens // width // shards, 1)
        for width in (*narrow, *s.rl.buckets)
    }


def micro_rows(s: Settings, shards: int) -> int:
    """Rows of a micro-batch of the widest bucket, on all chips."""
    return micro_shapes(s, shards)[s.rl.buckets[-1]]


def cached_heads(model: ModelSettings, split: Split, attention: Choice) -> int:
    """Kv heads that a chip stores in its cache."""
    return FORMS[attention.form].heads_on(model.kv_heads, split.tensor)


def bytes_on(
    s: Settings, model: ModelSettings, shape: Shape, split: Split, attention: Choice
) -> Bytes:
    """Bytes on one chip of the run of `s` under `split`, with the attention of its platform."""
    r, a_token = s.rollout, cache_bytes(model, cached_heads(model, split, attention))
    positions = padded_positions(tape_positions(s), FORMS[attention.form].page)
    update = partial(_update_bytes, model, shape, split, attention)
    widths = [(rows // split.fsdp, width) for width, rows in micro_shapes(s, split.fsdp).items()]
    return Bytes(
        parameters=4 * shape.trained + shape.frozen,
        optimizer=8 * shape.trained,
        gradients=8 * shape.trained,
        reference=4 * shape.trained if s.rl.kl else 0,  # a frozen base is the policy's own
        copy=shape.sampled,
        cache=split.slots * positions * a_token,
        prompts=r.questions // split.fsdp * r.prompt_tokens * a_token,
        rollout=_rollout_bytes(s, model, shape, split, attention),
        update=max(update(rows=rows, width=width) for rows, width in widths),
        scratch=max(cudnn_scratch(model, shape, split, attention, *each) for each in widths),
    )


def _rollout_bytes(
    s: Settings, model: ModelSettings, shape: Shape, split: Split, attention: Choice
) -> float:
    """Tapes, plus the largest temporaries of: all prompts, a tick, a chunk of one row.

    A tape is written with a chunk's positions more than it is returned with. Plain attention of
    whole rows writes its scores to memory.
    """
    r, item, D = s.rollout, shape.itemsize, model.width
    tapes = shard_rows(s, split) * (tape_positions(s) + r.max_tokens) * TAPE_BYTES
    others = (2 * shape.ffn + 4 * D) * item
    score = shape.heads * (4 + 4 + item)  # of a query and a key, its weight, and a copy
    questions, X = r.questions // split.fsdp, r.prompt_tokens
    prompts = questions * X * (score * X * (attention.name == "plain") + others)
    # Ticks and chunks attend to one block of the cache after another.
    block = BLOCK * 2 * cached_heads(model, split, attention) * model.head_width * item
    sums = 2 * shape.heads * model.head_width * 4
    a_token = score * BLOCK + sums + others
    tick = split.slots * (max(a_token + block, shape.vocab * 3 * 4))
    chunk = chunk_of(r) * a_token + block
    return tapes + max(prompts, tick, chunk)


def cudnn_scratch(
    model: ModelSettings, shape: Shape, split: Split, attention: Choice, rows: int, width: int
) -> int:
    """Bytes that cuDNN's backward pass of attention asks for besides its results.

    A float32 gradient of the queries and a sum for each; where query heads share a kv head,
    gradients of keys and values for each of them, in bfloat16 (cuDNN 9.28 for compute capability
    9.0; `benchmarks/cudnn_attention.py` asks it).
    """
    if attention.name != "cudnn":
        return 0
    shared = model.heads > math.lcm(model.kv_heads, split.tensor)
    numbers = model.head_width * (2 if shared else 1) + 1
    return 4 * rows * width * shape.heads * numbers


def _update_bytes(
    model: ModelSettings,
    shape: Shape,
    split: Split,
    attention: Choice,
    *,
    rows: int,
    width: int,
) -> float:
    """Temporaries: what the backward pass keeps, plus one layer's arrays or a chunk of logits.

    Plain attention of whole rows writes its scores to memory (no kernel of the platform).
    """
    item, D, tokens = shape.itemsize, model.width, rows * width
    heads = (shape.heads + 2 * shape.kv_heads) * model.head_width
    scores = rows * shape.heads * width * width if attention.name == "plain" else 0
    deltas = 4 * tokens * sum(shape.adapted)  # outputs of adapters are float32
    low = tokens * len(shape.adapted) * model.lora.rank * item
    projected = (heads + shape.heads * model.head_width + 2 * D + 2 * shape.ffn) * item
    kept = {
        "none": tokens * (projected + (4 * D + shape.ffn) * item) + scores * (4 + item) + low,
        "dots": tokens * (projected + D * item) + scores * 4 + low + deltas,
        "dots_no_batch": tokens * (projected + D * item) + low + deltas,
        "offload": tokens * D * item,
        "full": tokens * D * item,
    }[split.remat]
    layer = 2 * tokens * (projected + shape.ffn * item) + scores * (4 + 4 + item)
    layer += low + 4 * tokens * max(shape.adapted, default=0)
    layer += cudnn_scratch(model, shape, split, attention, rows, width)
    at_a_time = positions_at_a_time(model.score_logits, model.vocab, split.tensor)
    logits = min(tokens, at_a_time) * shape.vocab * 3 * 4
    # One layer and the head, gathered over fsdp and in the compute dtype, with their gradients; a
    # frozen base is in that dtype already. The head is gathered before it is cast.
    several, cast = split.fsdp > 1, item < 4
    if shape.adapters:
        one_layer, head = shape.sampled / model.layers * several, item * several
    else:
        one_layer = 2 * shape.sampled / model.layers
        head = 4 * several + item * cast + 4
    return model.layers * kept + max(layer, logits) + one_layer + shape.vocab * D * head
