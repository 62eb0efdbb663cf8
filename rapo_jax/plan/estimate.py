"""Estimates the FLOPs, bytes sent and seconds of a training step, and chooses the fastest split."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.attention import choose
from rapo_jax.plan.arithmetic import (
    Bytes,
    bytes_on,
    cache_bytes,
    cached_heads,
    micro_rows,
    sampled_tokens,
    shard_rows,
)
from rapo_jax.plan.chips import Slice
from rapo_jax.plan.shapes import Shape, Split, shape_on
from rapo_jax.rollout.slots import chunk_of

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
    split: Split
    bytes: Bytes
    work: Work

    @property
    def fits(self) -> bool:
        return self.bytes.peak <= self.slice.usable


def work_on(s: Settings, model: ModelSettings, shape: Shape, split: Split, chips: Slice) -> Work:
    """The work of one chip of `chips`, at its published peak numbers.

    Rows are sampled without a pause in the slots of their shard. A token attends to half of the
    largest row: the mean of a row that is written to its end.
    """
    r, chip, L = s.rollout, chips.chip, model.layers
    rows, item, mean = shard_rows(s, split), shape.itemsize, r.max_tokens / 2
    base, adapters = shape.matrix / split.tensor, shape.adapters / split.tensor
    matrix = base if model.lora.merge else base + adapters  # in a rollout
    attention = 4 * shape.heads * model.head_width * L  # FLOPs of a query and a key
    a_token = 2 * matrix + attention * mean
    kv_heads = cached_heads(model, split, choose(model, platform=chip.platform))
    a_position = cache_bytes(model, kv_heads)

    def seconds_of(flops: float, *, attended: float) -> float:
        """Seconds of one pass over the weights, with `attended` cached positions read."""
        read = shape.sampled + attended * a_position
        return max(flops / chip.flops, read / chip.bandwidth)

    sampled = rows * sampled_tokens(s)
    ticks = sampled / split.slots
    tick_seconds = seconds_of(split.slots * a_token, attended=split.slots * mean)
    texts = r.observation_tokens + (r.retrieved_tokens if s.n_hybrid else 0)
    chunks = rows * r.max_calls * math.ceil(texts / chunk_of(r))  # each of one row
    chunk_seconds = seconds_of(chunk_of(r) * a_token, attended=mean)
    prompts = r.questions // split.fsdp * r.prompt_tokens
    prompt_flops = prompts * (2 * matrix + attention * r.prompt_tokens)
    all_reduce = 2 * (split.tensor - 1) / split.tensor
    read = chunks * chunk_of(r)
    sent = (sampled + read + prompts) * 2 * L * model.width * item * all_reduce
    seconds = ticks * tick_seconds + chunks * chunk_seconds + prompt_flops / chip.flops
    weights = shape.sampled * (split.fsdp - 1) / split.fsdp  # gathered for the copy

    width, micro = s.rl.buckets[-1], micro_rows(s, split.fsdp)
    passes = s.rl.epochs * math.ceil(r.questions * r.group_size / micro)
    tokens_here = micro // split.fsdp * width
    again = 0 if split.remat == "none" else 1  # forward once more
    token_flops = 2 * base * (1 + again + shape.passed_back)
    token_flops += (2 * adapters + attention * width / 2) * (3 + again)
    if s.rl.kl:  # the weights at the start read the tokens, too
        token_flops += 2 * (base + adapters) + attention * width / 2
    flops = passes * tokens_here * token_flops
    reduced = 4 * shape.adapters if shape.adapters else 4 / item * shape.sampled
    head = 0 if shape.adapters else 2 * shape.vocab * model.width * (4 - item)  # before its cast
    gathers = (2 * shape.sampled + head + reduced) * (split.fsdp - 1) / split.fsdp
    sums = tokens_here * (4 + again) * L * model.width * item * all_reduce  # over tensor
    update_sent = passes * (gathers + sums)
    return Work(
        rollout_flops=(sampled + read) * a_token + prompt_flops,
        update_flops=flops,
        rollout_sent=sent + weights,
        update_sent=update_sent,
        rollout_seconds=seconds + (sent + weights) / chip.link,
        update_seconds=max(flops / chip.flops, update_sent / chip.link),
    )


def splits_on(s: Settings, model: ModelSettings, chips: Slice) -> list[Split]:
    """Every split of rows and heads over a slice, with 1, 2, 4, ... slots up to all rows."""
    splits: list[Split] = []
    remats = REMATS[REMATS.index(s.model.remat) :] if s.model.remat in REMATS else (s.model.remat,)
    for tensor in (1, 2, 4, 8):
        fsdp = chips.chips // tensor
        if chips.host % tensor or model.heads % tensor or s.rollout.questions % fsdp:
            continue
        rows = s.rollout.questions * s.rollout.group_size // fsdp
        powers = (2**n for n in range((rows - 1).bit_length()))
        splits += [Split(fsdp, tensor, n, remat) for n in (*powers, rows) for remat in remats]
    return splits


def estimate(s: Settings, model: ModelSettings, chips: Slice) -> Estimate | None:
    """The fastest split that fits, else that of the least bytes; None if there is no split.

    Each chip along fsdp has at least one question, so `rollout.questions` limits their number.
    """
    attention = choose(model, platform=chips.chip.platform)
    tried = []
    for split in splits_on(s, model, chips):
        shape = shape_on(model, fsdp=split.fsdp, tensor=split.tensor)
        needed = bytes_on(s, model, shape, split, attention)
        tried.append(Estimate(chips, split, needed, work_on(s, model, shape, split, chips)))
    fitting = [each for each in tried if each.fits]
    if fitting:
        return min(fitting, key=lambda e: e.work.rollout_seconds + e.work.update_seconds)
    return min(tried, key=lambda e: e.bytes.peak, default=None)


def largest_slots(s: Settings, model: ModelSettings, chosen: Estimate) -> int:
    """The most slots of all chips together that fit, at most one for each rollout; 0 if none."""
    split, chips = chosen.split, chosen.slice
    attention = choose(model, platform=chips.chip.platform)
    shape = shape_on(model, fsdp=split.fsdp, tensor=split.tensor)
    for slots in range(shard_rows(s, split), 0, -1):
        larger = dataclasses.replace(split, slots=slots)
        if bytes_on(s, model, shape, larger, attention).rollout_peak <= chips.usable:
            return larger.all_slots
    return 0
