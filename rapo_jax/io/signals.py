"""Signals that ask a run to stop, and output that does not fail after its terminal is gone."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REPEAT_S = 1.0
"""Signals within this time of the first count as one: launchers forward a terminal's signal."""


class _Stop:
    requested = False


def end_in_one_line() -> None:
    """Until `install`, ctrl-C ends this process in one line: it has not begun to write anything."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, _: object) -> None:
    line = "interrupted before the run began; the same command starts or resumes it\n"
    os.write(2, line.encode())  # not print: the signal may have come within one
    os._exit(128 + number)


def stop_requested() -> bool:
    """Whether this process received a signal of STOP after `install`."""
    return _Stop.requested


def install() -> None:
    """From now on SIGTERM, SIGINT (ctrl-C) and SIGHUP ask for a stop; a second one ends at once.

    The handler only sets the flag of `stop_requested`. A signal that the process was started to
    ignore (nohup, a shell's background job) stays ignored. After a first signal, writing to a
    standard output or error that no longer exists is no error.
    """
    received, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(received,), name="signals", daemon=True)
    watch.start()
    atexit.register(_end_watch, watch, wakeup)
    for name in ("stdout", "stderr"):
        setattr(sys, name, _tolerant(getattr(sys, name)))
    for number in STOP:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _request)


def _request(*_: object) -> None:
    _Stop.requested = True


def _end_watch(watch: threading.Thread, wakeup: int) -> None:
    """Ends the thread: one that still runs while the interpreter is taken down can crash it."""
    signal.set_wakeup_fd(-1)
    os.close(wakeup)
    watch.join(REPEAT_S)


def _watch(received: int) -> None:
    """Announces the first signal, ends the process at the second one; returns when the pipe closes.

    A thread of its own, because Python runs a handler only between two instructions of the main
    thread, which may wait for a rollout for minutes.
    """
    first = 0.0
    while True:
        if not (byte := os.read(received, 1)):
            return
        number = signal.Signals(byte[0])
        if number not in STOP:
            continue
        if not first:
            first = time.monotonic()
            _request()
            print(
                f"[stop] {number.name}: the run saves what it has after the running step or batch; "
                "a second signal ends it at once",
                flush=True,
            )
        elif time.monotonic() - first > REPEAT_S:
            line = "[stop] ended at once; the same command resumes from the last checkpoint\n"
            with contextlib.suppress(OSError):
                os.write(1, line.encode())  # not print: the main thread may be within one
            os._exit(128 + number)


class _Output(io.FileIO):
    """A standard stream's file; see `install`."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            if not _Stop.requested:
                raise
            return memoryview(data).nbytes


def _tolerant(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    file = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True)
