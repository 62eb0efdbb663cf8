"""Estimates the FLOPs, bytes sent and seconds of a training step, and chooses the fastest split."""

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
    cache_bytes,
    cache_slots,
    micro_rows,
    sampled_tokens,
    shape_on,
)
from rapo_jax.plan.chips import Slice

REMATS = ("none", "dots", "dots_no_batch", "full")
"""The values of model.remat that are tried, from the most bytes to the least."""


class Work(NamedTuple):
    """One chip's work in a training step whose rows all have the largest allowed length."""

    rollout_flops: float
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
    """The work of one chip of `chips`, at its published peak numbers."""
    r, chip, L = s.rollout, chips.chip, model.layers
    rows = r.questions * r.group_size // way.chunks // way.fsdp  # of a chunk of questions
    slots, item = cache_slots(s), shape.itemsize
    base, adapters = shape.matrix / way.tensor, shape.adapters / way.tensor
    matrix = base if model.lora.merge else base + adapters  # in a rollout
    attention = 4 * shape.heads * model.head_width * L  # FLOPs of a query and a key

    ticks = sampled_tokens(s)
    tick_flops = rows * (2 * matrix + attention * slots)
    tick_bytes = shape.sampled + rows * slots * cache_bytes(model, shape)
    tick = max(tick_flops / chip.flops, tick_bytes / chip.bandwidth)
    spans = r.observation_tokens + (r.retrieved_tokens if s.n_hybrid else 0)
    read = rows * spans * r.max_calls * (2 * matrix + attention * slots)
    prompts = rows / r.group_size * r.prompt_tokens * (2 * matrix + attention * r.prompt_tokens)
    all_reduce = 2 * (way.tensor - 1) / way.tensor
    tokens = rows * (ticks + spans * r.max_calls) + rows / r.group_size * r.prompt_tokens
    sent = tokens * 2 * L * model.width * item * all_reduce
    seconds = ticks * tick + (read + prompts) / chip.flops + sent / chip.link
    weights = shape.sampled * (way.fsdp - 1) / way.fsdp  # gathered for the copy

    width, micro = s.rl.buckets[-1], micro_rows(s, way.fsdp)
    passes = s.rl.epochs * math.ceil(r.questions * r.group_size / micro)
    tokens_here = micro // way.fsdp * width
    again = 0 if way.remat == "none" else 1  # forward once more
    token_flops = 2 * base * (1 + again + shape.passed_back)
    token_flops += (2 * adapters + attention * width / 2) * (3 + again)
    flops = passes * tokens_here * token_flops
    reduced = 4 * shape.adapters if shape.adapters else 4 / item * shape.sampled
    gathers = (2 * shape.sampled + reduced) * (way.fsdp - 1) / way.fsdp
    update_sent = passes * (gathers + tokens_here * 4 * L * model.width * item * all_reduce)
    return Work(
        rollout_flops=way.chunks * (ticks * tick_flops + read + prompts),
        update_flops=flops,
        rollout_sent=way.chunks * sent + weights,
        update_sent=update_sent,
        rollout_seconds=way.chunks * seconds + weights / chip.link,
        update_seconds=max(flops / chip.flops, update_sent / chip.link),
    )


def ways_on(s: Settings, model: ModelSettings, chips: Slice) -> list[Way]:
    """Every way to split rows, heads and chunks of questions on a slice."""
    ways: list[Way] = []
    for tensor in (1, 2, 4, 8):
        if chips.host % tensor or model.heads % tensor:
            continue
        fsdp = chips.chips // tensor
        for chunks in range(1, s.rollout.questions + 1):
            if s.rollout.questions % chunks or (s.rollout.questions // chunks) % fsdp:
                continue
            remats = REMATS[REMATS.index(s.model.remat) :] if s.model.remat in REMATS else ()
            ways += [Way(fsdp, tensor, chunks, remat) for remat in remats or (s.model.remat,)]
    return ways


def estimate(s: Settings, model: ModelSettings, chips: Slice) -> Estimate | None:
    """The fastest way that fits, else that of the least bytes; None if rows cannot be split so.

    Each chip along fsdp samples at least one question, so `rollout.questions` limits their number.
    """
    plain = choose(model, platform=chips.chip.platform).name == "plain"
    tried = []
    for way in ways_on(s, model, chips):
        shape = shape_on(model, fsdp=way.fsdp, tensor=way.tensor)
        needed = bytes_on(s, model, shape, way, plain=plain)
        tried.append(Estimate(chips, way, needed, work_on(s, model, shape, way, chips)))
    fitting = [each for each in tried if each.fits]
    if fitting:
        return min(fitting, key=lambda e: e.work.rollout_seconds + e.work.update_seconds)
    return min(tried, key=lambda e: e.bytes.peak, default=None)


def rows_at_once(s: Settings, chosen: Estimate) -> int:
    """The rollouts of one chunk of questions that would fit on all chips together."""
    b, r = chosen.bytes, s.rollout
    now = r.questions * r.group_size // chosen.way.chunks
    free = chosen.slice.usable - b.parameters - b.optimizer - b.copy
    return max(0, int(free / (b.cache + b.rollout) * now))
