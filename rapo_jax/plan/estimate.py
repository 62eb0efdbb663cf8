"""The work of a training step by peak numbers, and the fastest way of a run on a slice."""

from __future__ import annotations

import math
from typing import NamedTuple

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.attention import choose
from rapo_jax.plan.arithmetic import (
    Bytes,
    Shape,
    Way,
    bytes_on,
    cache_slots,
    micro_rows,
    sampled_tokens,
    shape_on,
)
from rapo_jax.plan.chips import Slice

REMATS = ("none", "dots", "dots_no_batch", "full")
"""What model.remat may be raised to, from the most bytes to the least."""


class Work(NamedTuple):
    """Of one training step in which every row is as long as it may be."""

    rollout_flops: float
    """Of one chip, as all that follows."""
    update_flops: float
    rollout_sent: float
    update_sent: float
    rollout_seconds: float
    update_seconds: float


class Estimate(NamedTuple):
    slice: Slice
    way: Way
    bytes: Bytes
    work: Work

    @property
    def fits(self) -> bool:
        return self.bytes.peak <= self.slice.usable


def work_on(s: Settings, model: ModelSettings, shape: Shape, way: Way, chips: Slice) -> Work:
    r, chip, L = s.rollout, chips.chip, model.layers
    rows = r.questions * r.group_size // way.chunks // way.fsdp
    slots, item = cache_slots(s), shape.itemsize
    base, own = shape.matrix / way.tensor, shape.adapters / way.tensor
    matrix = base if model.lora.merge else base + own  # in a rollout
    attention = 4 * shape.heads * model.head_width * L  # of a query and a key

    ticks = sampled_tokens(s)
    tick_flops = rows * (2 * matrix + attention * slots)
    cache = rows * slots * 2 * shape.kv_heads * model.head_width * item * L
    tick = max(tick_flops / chip.flops, (shape.sampled + cache) / chip.bandwidth)
    spans = r.observation_tokens + (r.retrieved_tokens if s.n_hybrid else 0)
    read = rows * spans * r.max_calls * (2 * matrix + attention * slots)
    prompts = rows / r.group_size * r.prompt_tokens * (2 * matrix + attention * r.prompt_tokens)
    tensor = 2 * (way.tensor - 1) / way.tensor  # of an all-reduce
    tokens = rows * (ticks + spans * r.max_calls) + rows / r.group_size * r.prompt_tokens
    sent = tokens * 2 * L * model.width * item * tensor
    seconds = ticks * tick + (read + prompts) / chip.flops + sent / chip.link
    weights = shape.sampled * (way.fsdp - 1) / way.fsdp  # gathered for the copy
    rollout_sent = way.chunks * sent + weights

    width, micro = s.rl.buckets[-1], micro_rows(s, way.fsdp)
    passes = s.rl.epochs * math.ceil(r.questions * r.group_size / micro)
    tokens_here = micro // way.fsdp * width
    again = 0 if way.remat == "none" else 1  # forward once more
    forward = 2 * base * (1 + again + shape.passed_back)
    forward += (2 * own + attention * width / 2) * (3 + again)
    flops = passes * tokens_here * forward
    ring = (way.fsdp - 1) / way.fsdp
    reduced = 4 * shape.adapters if shape.adapters else 4 / item * shape.sampled
    gathers = (2 * shape.sampled + reduced) * ring
    update_sent = passes * (gathers + tokens_here * 4 * L * model.width * item * tensor)
    update = max(flops / chip.flops, update_sent / chip.link)
    return Work(
        way.chunks * (ticks * tick_flops + read + prompts),
        flops,
        rollout_sent,
        update_sent,
        way.chunks * seconds + weights / chip.link,
        update,
    )


def ways_on(s: Settings, model: ModelSettings, chips: Slice) -> list[Way]:
    """Every way that the rows and heads can be cut on a slice."""
    found = []
    for tensor in (1, 2, 4, 8):
        if chips.host % tensor or model.heads % tensor:
            continue
        fsdp = chips.chips // tensor
        for chunks in range(1, s.rollout.questions + 1):
            if s.rollout.questions % chunks or (s.rollout.questions // chunks) % fsdp:
                continue
            remats = REMATS[REMATS.index(s.model.remat) :] if s.model.remat in REMATS else ()
            found += [Way(fsdp, tensor, chunks, remat) for remat in remats or (s.model.remat,)]
    return found


def estimate(s: Settings, model: ModelSettings, chips: Slice) -> Estimate | None:
    """The fastest way that fits, else the one that lacks least; None where rows cannot be cut so.

    Every chip needs a question of its own: `rollout.questions` bounds the chips over tensor ways.
    """
    tried = []
    for way in ways_on(s, model, chips):
        shape = shape_on(model, fsdp=way.fsdp, tensor=way.tensor)
        plain = needs_scores(model, chips)
        needed = bytes_on(s, model, shape, way, plain=plain)
        tried.append(Estimate(chips, way, needed, work_on(s, model, shape, way, chips)))
    if not tried:
        return None
    fitting = [each for each in tried if each.fits]
    if fitting:
        return min(fitting, key=lambda e: e.work.rollout_seconds + e.work.update_seconds)
    return min(tried, key=lambda e: e.bytes.peak)


def needs_scores(model: ModelSettings, chips: Slice) -> bool:
    """Whether whole rows are attended to without a kernel of the platform."""
    return choose(model, platform=chips.chip.platform).name == "plain"


def rows_at_once(s: Settings, found: Estimate) -> int:
    """Rollouts of one chunk that would fit, of all chips together."""
    b, r = found.bytes, s.rollout
    now = r.questions * r.group_size // found.way.chunks
    free = found.slice.usable - b.parameters - b.optimizer - b.copy
    return max(0, int(free / (b.cache + b.rollout) * now))
