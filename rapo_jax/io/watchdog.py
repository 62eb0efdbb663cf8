"""Ends a run that no longer advances, with the stacks of all its threads.

A tool, a reward, a collective or a write that never returns would keep the machine for good. No
checkpoint is saved then: what hangs may hold any lock, and the last one can be loaded.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

TICK_S = 10.0
LAST_WORDS_S = 30
"""Time to write the stacks; a file system that hangs may hang them too."""
STDERR, STATUS = 2, 1


class _Heart:
    quiet_s = 0.0
    """Seconds since the last `beat` in which this process ran."""
    waits = 0
    """Number of active `paused` blocks."""


def beat() -> None:
    """Notes that the run advances: a step, a batch or a trajectory has ended."""
    _Heart.quiet_s = 0.0


@contextmanager
def paused() -> Iterator[None]:
    """Excludes the time inside: another process works, with a watchdog of its own."""
    _Heart.waits += 1
    try:
        yield
    finally:
        _Heart.waits -= 1
        beat()


@contextmanager
def watched(after_s: float) -> Iterator[None]:
    """Ends this process with status 1 where `beat` is not called for `after_s` seconds; 0: never.

    Time in which the whole process is stopped (SIGSTOP, ctrl-Z), up to `after_s`, does not count.
    """
    if not after_s:
        yield
        return
    beat()
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(after_s, ended), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(after_s: float, ended: threading.Event) -> None:
    tick_s = min(after_s / 4, TICK_S)
    while not ended.wait(tick_s):
        # For code that keeps the interpreter's lock, as a regular expression without end does.
        faulthandler.dump_traceback_later(after_s, exit=True, file=STDERR)
        if _Heart.waits:
            continue
        _Heart.quiet_s += tick_s
        if _Heart.quiet_s >= after_s:
            _end(after_s)


def _end(after_s: float) -> None:
    signal.alarm(LAST_WORDS_S)  # the kernel's: it ends this process also within a write
    text = (
        f"[watchdog] no step or batch ended for {after_s:g} s (watchdog.after_s): a tool, a "
        "reward, a collective or a write does not return. The stacks of all threads follow; the "
        "same command resumes from the last checkpoint\n" + stacks()
    )
    with contextlib.suppress(OSError):
        os.write(STDERR, text.encode(errors="replace"))
    os._exit(STATUS)


def stacks() -> str:
    """The stack of every thread, the main one first; threads with equal stacks are shown once."""
    frames = sys._current_frames()
    threads: dict[str, list[str]] = {}
    for thread in threading.enumerate():
        if (frame := frames.get(thread.ident or 0)) is not None:
            stack = "".join(traceback.format_stack(frame))
            threads.setdefault(stack, []).append(thread.name)
    return "\n".join(f"Thread {', '.join(names)}:\n{stack}" for stack, names in threads.items())
