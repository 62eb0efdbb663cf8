"""Several processes as one run: joining them, splitting rows among them, gathering results.

Every process runs the same program on the same config, over one mesh of all their devices. What a
device computes is split by shardings, everything else by the functions here. The first process
alone writes, apart from checkpoints, which all write together. A process computes tool calls,
retrievals and rewards of its local rows, and gathers those of the other processes.

With one process all of this does nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from rapo_jax.config import DistributedSettings
from rapo_jax.config.sources import flatten
from rapo_jax.io import signals, watchdog
from rapo_jax.io.files import locked

T = TypeVar("T")

MAKING = "making.lock"
"""The lock file of a folder that several runs may share."""
PATIENCE_S = 30.0
"""How long a file of another host may take to show up."""
JOIN_S = 240.0
"""How long a process looks for process 0; JAX waits for all of them for 300 s."""
TELL_S = 30.0
"""Between two lines that say what is waited for."""
LEAST_BYTES = 256
"""Bytes that each process sends in a gather, at least."""


class Stopped(Exception):
    """A signal asked a process to stop, and all of them did; the message says what was saved."""


def start(s: DistributedSettings) -> None:
    """Joins the processes of this run, before anything touches a device.

    From then on a first signal does not end a process: see `stop_asked` and `signals.install`.

    Raises:
        ValueError: the other processes cannot be found or reached.
    """
    if s.mode != "off":
        _join(s)
    signals.install()  # last: JAX sets a handler of its own


def _join(s: DistributedSettings) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    if s.mode == "explicit":
        _find_coordinator(s)
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
            "neither TPU metadata nor SLURM names other processes; set 'explicit' with "
            "distributed.coordinator, distributed.processes and distributed.process, or 'off'"
            if s.mode == "auto"
            else f"process {s.process} of {s.processes} did not reach {s.coordinator}"
        )
        reason = str(error).splitlines()[0]
        raise ValueError(f"distributed.mode={s.mode!r}: {remedy} ({reason})") from error


def _find_coordinator(s: DistributedSettings) -> None:
    """Waits until process 0 listens; on process 0, sees to it that it can.

    Without this JAX would end the process by a signal, in the first case after minutes of silence.

    Raises:
        ValueError: its port is taken, or nobody listens there after JOIN_S seconds.
    """
    host, _, port = s.coordinator.rpartition(":")
    if s.process == 0:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind(("", int(port)))
            except OSError as error:
                raise ValueError(
                    f"distributed.coordinator={s.coordinator!r}: process 0 cannot listen there "
                    f"({error.strerror}); give another port"
                ) from None
        if s.processes > 1:
            print(f"[hosts] waiting for {s.processes - 1} other processes", file=sys.stderr)
        return
    started, told = time.monotonic(), -math.inf
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            reason = error.strerror or str(error)
        now = time.monotonic()
        if now - started > JOIN_S:
            raise ValueError(
                f"distributed.coordinator={s.coordinator!r}: process 0 does not answer after "
                f"{JOIN_S:.0f} s ({reason}); start it, or correct the address"
            )
        if now - told >= TELL_S:
            told = now
            print(f"[hosts] waiting for process 0 at {s.coordinator} ({reason})", file=sys.stderr)
        time.sleep(0.5)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def local_part(items: Sequence[T]) -> list[T]:
    """This process's block of questions or rows: those of its devices."""
    each = len(items) // jax.process_count()
    first = jax.process_index() * each
    return list(items[first : first + each])


def allgather_json(value: T) -> list[T]:
    """The values of all processes, in their order, sent as JSON (with several, tuples are lists).

    All processes must call it together.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size_P = multihost_utils.process_allgather(np.int32(len(data)))
    room = max(int(size_P.max()), LEAST_BYTES)
    padded = np.zeros(1 << (room - 1).bit_length(), np.uint8)  # few sizes mean few programs
    padded[: len(data)] = data
    data_PX = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(data_PX, size_P, strict=True)]


def allgather_rows(local_rows: Sequence[T]) -> list[T]:
    """The rows of all processes as one list, in the order of processes; see `allgather_json`."""
    return [row for part in allgather_json(local_rows) for row in part]


def on_first(work: Callable[[], T], *, at_length: bool = False) -> T:
    """Calls `work` on the first process alone and returns its result (JSON) on all of them.

    With `at_length` the watchdogs of the others do not count the time in which they wait for it.

    Raises:
        ValueError: `work` raised it, or an OSError, on the first process.
        Stopped: `work` raised it.
    """
    if jax.process_count() == 1:
        return work()
    value, error, stopped = None, "", ""
    if is_first():
        try:
            value = work()
        except (ValueError, OSError) as raised:
            error = str(raised)
        except Stopped as raised:
            stopped = str(raised)
    with watchdog.paused() if at_length and not is_first() else contextlib.nullcontext():
        value, error, stopped = allgather_json((value, error, stopped))[0]
    if error:
        raise ValueError(error)
    if stopped:
        raise Stopped(stopped)
    return cast(T, value)


def in_turn(work: Callable[[], T]) -> T:
    """Runs `work` on the first process, then on the others: it may write files for them."""
    if jax.process_count() == 1:
        return work()
    done: list[T] = []
    on_first(lambda: done.append(work()))
    return done[0] if done else work()


def make_once(folder: Path, make: Callable[[], None], *, name: str) -> None:
    """Calls `make` on all processes, unless FOLDER/done.json is there, which it writes at its end.

    Of several runs that share the folder one makes it; the others wait, and find it made.

    Raises:
        Stopped: a signal asked for it while another run was at work there.
    """
    is_made = (folder / "done.json").is_file
    if on_first(is_made):
        return
    told: list[str] = []

    def waiting() -> None:
        if not told:
            told.append(f"[{name}] another run is making {folder}; waiting for it")
            print(told[0], flush=True)
        watchdog.beat()
        if signals.stop_requested():
            raise Stopped(f"another run is making {folder}")

    with contextlib.ExitStack() as held:
        lock = locked(folder / MAKING, waiting=waiting)
        on_first(lambda: held.enter_context(lock), at_length=True)
        if not on_first(is_made):
            make()


def stop_asked() -> bool:
    """Whether a signal asked any process to stop; all call it together and get the same answer.

    A stage asks it between two steps or batches: the watchdog counts from then.
    """
    watchdog.beat()
    if jax.process_count() == 1:
        return signals.stop_requested()
    return bool(multihost_utils.process_allgather(np.uint8(signals.stop_requested())).any())


def check_same(config: Mapping[str, object]) -> None:
    """Refuses processes with different configs; only the group `distributed` may differ."""
    local = dict(flatten(json.loads(json.dumps({**config, "distributed": None}))))
    for process, other in enumerate(allgather_json(local)):
        for key in sorted(set(local) | set(other)):
            if local.get(key) != other.get(key):
                raise ValueError(
                    f"{key}: process {process} has {other.get(key)!r}, process "
                    f"{jax.process_index()} has {local.get(key)!r}; start all with the same config"
                )


def check_shared(workdir: Path) -> None:
    """Refuses a workdir that is not one shared folder of all hosts: all write one checkpoint."""
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
    exists = allgather_json(mark.exists())
    if is_first():
        mark.unlink()
    blind = [process for process, there in enumerate(exists) if not there]
    if blind:
        raise ValueError(
            f"workdir={str(workdir)!r}: processes {blind} do not see what process 0 writes there; "
            "use a folder that all hosts share"
        )


def keep_quiet(workdir: Path) -> None:
    """Sends the standard output of all processes but the first to WORKDIR/log-host-N.txt."""
    if not is_first():
        path = workdir / f"log-host-{jax.process_index()}.txt"
        sys.stdout = path.open("a", encoding="utf-8", buffering=1)


def leave(status: int) -> None:
    """Ends this process at once if it is one of several: a normal exit would wait for the others,
    which wait for this one. With one process it returns."""
    if jax.process_count() == 1:
        return
    if status == 1:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(2)  # the others, which fail too, report to this process: it ends last
    os._exit(status)
