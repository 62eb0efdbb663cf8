"""Rejects a run whose arrays exceed the memory of its devices, before it is compiled.

Only arrays that the run surely holds count: weights, moments, gradients, the sampling weights,
caches and tapes. Temporaries come on top, so a run that passes may still fail; see `arithmetic.py`.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.attention import choose
from rapo_jax.model.sharding import row_shards
from rapo_jax.plan.arithmetic import TAPE_BYTES, bytes_on, tape_positions
from rapo_jax.plan.shapes import Split, shape_on

GB = 1e9


def device_memory(mesh: Mesh) -> float:
    """Bytes that a run may still use on each device; CPU devices share what the host has left.

    Infinite for an accelerator that does not say what it has.
    """
    local = mesh.local_devices
    if local[0].platform == "cpu":
        return host_memory() / len(local)
    return (local[0].memory_stats() or {}).get("bytes_limit", float("inf"))


def host_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that processes of this machine, or of this container, may still take (Linux)."""
    left = float("inf")
    for line in proc.read_text().splitlines() if proc.is_file() else ():
        if line.startswith("MemAvailable:"):
            left = int(line.split()[1]) * 1024
    try:
        most, used = ((cgroup / name).read_text() for name in ("memory.max", "memory.current"))
        return min(left, int(most) - int(used) + _cached(cgroup / "memory.stat"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return left


def _cached(stat: Path) -> int:
    """Bytes of file pages in a container, which the kernel gives up when a process needs them."""
    lines = stat.read_text().splitlines() if stat.is_file() else []
    found = dict(line.split() for line in lines)
    return sum(int(found.get(name, 0)) for name in ("active_file", "inactive_file"))


def check_memory(
    s: Settings,
    model: ModelSettings,
    mesh: Mesh,
    *,
    training: bool,
    evaluation_rows: int,
    available: float,
) -> None:
    """Checks a run's training, if it has one, and its largest batch of evaluation, if not 0.

    `available` is in bytes of each device.

    Raises:
        ValueError: one of them cannot fit; names the key to change, and a value that would fit.
    """
    if training:
        _refuse(s, model, mesh, available, key="rollout.questions")
    if evaluation_rows:
        rows = dataclasses.replace(s.rollout, questions=evaluation_rows, group_size=1)
        smaller = dataclasses.replace(s, rollout=rows)
        _refuse(smaller, model, mesh, available, key="evaluate.rows")


def _refuse(s: Settings, model: ModelSettings, mesh: Mesh, available: float, *, key: str) -> None:
    """Raises ValueError if training (`key` is rollout.questions) or evaluation exceeds memory."""
    training, shards, r = key == "rollout.questions", row_shards(mesh), s.rollout
    found = held_bytes(s, model, mesh, training=training)
    if found.total <= available:
        return
    what = f"{'training' if training else 'evaluation'} needs at least {found.total / GB:,.1f} GB"
    have = f"on each device, which has {available / GB:,.1f} GB"
    if found.weights > available:
        raise ValueError(
            f"mesh.fsdp={mesh.shape['fsdp']}: {what} {have}, {found.weights / GB:,.1f} GB of them "
            "for weights and what belongs to them; use more devices, adapters (model.lora.rank) or "
            "a smaller model"
        )
    most = min(r.slots or r.questions * r.group_size, r.questions * r.group_size)

    def too_much(each: int) -> bool:
        """Whether `each` slots per shard exceed the memory."""
        smaller = dataclasses.replace(s, rollout=dataclasses.replace(r, slots=each * shards))
        return held_bytes(smaller, model, mesh, training=training).total > available

    fitting = bisect_left(range(1, most // shards + 1), True, key=too_much) * shards
    if fitting:
        raise ValueError(
            f"rollout.slots={r.slots}: {what} {have}, {found.cache / GB:,.1f} GB of them for the "
            f"cache of {most} slots; set it to {fitting} or less"
        )
    raise ValueError(
        f"{key}={r.questions}: {what} {have}, {found.rows / GB:,.1f} GB of them for prompts and "
        "tapes of all rows; lower it"
    )


class Held(NamedTuple):
    """Bytes on one device, without temporaries."""

    weights: float
    """With moments and gradients, or with the sampling weights, whichever is more."""
    cache: float
    rows: float
    """Prompts and tapes."""
    total: float
    """The most at a time."""


def held_bytes(s: Settings, model: ModelSettings, mesh: Mesh, *, training: bool) -> Held:
    """Bytes on one device of a step of training, or of sampling alone."""
    shards, r = row_shards(mesh), s.rollout
    rows = r.questions * r.group_size // shards
    slots = min(r.slots // shards or rows, rows)
    shape = shape_on(model, fsdp=mesh.shape["fsdp"], tensor=mesh.shape["tensor"])
    split = Split(fsdp=shards, tensor=mesh.shape["tensor"], slots=slots, remat=s.model.remat)
    attention = choose(model, platform=mesh.devices.flat[0].platform)
    needed = bytes_on(s, model, shape, split, attention)
    state = needed.parameters + training * (needed.optimizer + needed.reference)
    # Of the gradients one set is surely there; the sampling weights are dropped before it.
    gradients = training * 4 * shape.trained
    tapes = rows * (tape_positions(s) + r.max_tokens) * TAPE_BYTES
    sampling = state + needed.copy + needed.cache + needed.prompts + tapes
    return Held(
        weights=state + max(needed.copy, gradients),
        cache=needed.cache,
        rows=needed.prompts + tapes,
        total=max(sampling, state + gradients),
    )
