"""Several processes as one run: how they find each other, who does what, and what they share.

Every process runs the same program on the same config, over one mesh of all their devices. What a
device computes is split by shardings; everything else is decided here. The first process alone
writes, apart from checkpoints, which all write together. A process serves the tools, the memory and
the rewards of its own rows, and hears from the others what came of theirs.

With one process all of this does nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rapo_jax.config import DistributedSettings

T = TypeVar("T")

PATIENCE_S = 30.0
"""How long a file of another host may take to show up."""
ROOM = 256
"""Bytes that a process shares at a time, at least."""


class Stopped(Exception):
    """A process was asked to stop (SIGTERM), and all of them did; says what was saved."""


class _Signal:
    """Whether SIGTERM came to this process."""

    came = False


def start(s: DistributedSettings) -> None:
    """Joins the processes of this run, before anything touches a device.

    From then on SIGTERM ends no process at once: see `stop_asked`.

    Raises:
        ValueError: no process to join was found.
    """
    if s.mode == "off":
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        if s.mode == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                s.coordinator,
                s.processes,
                s.process,
                cluster_detection_method="deactivate",  # all devices of a host are its process's
            )
    except (ValueError, RuntimeError) as error:
        remedy = (
            "neither TPU metadata nor SLURM tell of other processes; set 'explicit' with "
            "distributed.coordinator, distributed.processes and distributed.process, or 'off'"
            if s.mode == "auto"
            else f"process {s.process} of {s.processes} did not reach {s.coordinator}"
        )
        reason = str(error).splitlines()[0]
        raise ValueError(f"distributed.mode={s.mode!r}: {remedy} ({reason})") from error
    signal.signal(signal.SIGTERM, _note_signal)


def _note_signal(*_: Any) -> None:
    _Signal.came = True


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def local_part(items: Sequence[T]) -> list[T]:
    """This process's block of questions or rows: those of its own devices."""
    each = len(items) // jax.process_count()
    first = jax.process_index() * each
    return list(items[first : first + each])


def allgather_json(value: Any) -> list[Any]:
    """What every process gave, in their order; JSON in between. All must call it together."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size_P = multihost_utils.process_allgather(np.int32(len(data)))
    room = ROOM
    while room < size_P.max():  # few sizes are few programs
        room *= 2
    padded = np.zeros(room, np.uint8)
    padded[: len(data)] = data
    data_PX = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(data_PX, size_P, strict=True)]


def on_first(work: Callable[[], T]) -> T:
    """What `work`, done by the first process alone, returns (JSON); the others wait for it.

    Raises:
        ValueError: `work` raised it, or FileNotFoundError, on the first process.
    """
    if jax.process_count() == 1:
        return work()
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"value": work()}
        except (ValueError, FileNotFoundError) as error:
            said = {"error": str(error)}
    said = allgather_json(said)[0]
    if "error" in said:
        raise ValueError(said["error"])
    return said["value"]


def in_turn(work: Callable[[], T]) -> T:
    """Runs `work` everywhere, the others after the first, who may leave files for them."""
    if jax.process_count() == 1:
        return work()
    done: list[T] = []
    on_first(lambda: done.append(work()))
    return done[0] if done else work()


def stop_asked() -> bool:
    """Whether SIGTERM came to any process by now: the same answer on all, who ask together."""
    if jax.process_count() == 1:
        return _Signal.came
    return bool(multihost_utils.process_allgather(np.uint8(_Signal.came)).any())


def check_same(config: Mapping[str, Any]) -> None:
    """Refuses processes of different configs; `distributed` says who is who and may differ."""
    mine = json.loads(json.dumps({**config, "distributed": None}))
    for process, other in enumerate(allgather_json(mine)):
        for key in sorted(set(mine) | set(other)):
            if mine.get(key) != other.get(key):
                raise ValueError(
                    f"{key}: process {process} has {other.get(key)!r}, process "
                    f"{jax.process_index()} has {mine.get(key)!r}; start all with the same config"
                )


def check_shared(workdir: Path) -> None:
    """Refuses a workdir that is another folder on another host: all write one checkpoint."""
    if jax.process_count() == 1:
        return

    def leave_mark() -> str:
        mark = workdir / f".shared-{uuid.uuid4().hex}"
        mark.touch()
        return mark.name

    mark = workdir / on_first(leave_mark)
    deadline = time.monotonic() + PATIENCE_S
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
        os.listdir(workdir)  # makes a network file system look again
    seen = allgather_json(mark.exists())
    if is_first():
        mark.unlink()
    if not all(seen):
        blind = [process for process, saw in enumerate(seen) if not saw]
        raise ValueError(
            f"workdir={str(workdir)!r}: processes {blind} do not see what process 0 writes there; "
            "use a folder that all hosts share"
        )


def keep_quiet(workdir: Path) -> None:
    """Sends what the other processes print to WORKDIR/log-host-N.txt."""
    if not is_first():
        path = workdir / f"log-host-{jax.process_index()}.txt"
        sys.stdout = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115


def leave(status: int) -> None:
    """Ends a process of several that failed: a proper exit would wait for those that wait for it.

    With one process it returns.
    """
    if jax.process_count() == 1:
        return
    if status == 1:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(2)  # the others, who fail too, report to this process: it goes last
    os._exit(status)
