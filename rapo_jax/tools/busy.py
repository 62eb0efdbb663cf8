"""The wall time in which concurrent threads were busy, and in which all busy ones waited."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class BusyTime:
    """Each second counts once, however many threads are busy in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = self._waiting = 0
        self._since = 0.0
        self._seconds = self._waited = 0.0

    def busy(self) -> AbstractContextManager[None]:
        """Around the work of a thread."""
        return self._during(busy=1)

    def waiting(self) -> AbstractContextManager[None]:
        """Around a wait within that work."""
        return self._during(waiting=1)

    def take(self) -> tuple[float, float]:
        """Seconds since the last call in which a thread was busy, and those in which all busy ones
        waited."""
        self._change()
        with self._lock:
            taken, self._seconds, self._waited = (self._seconds, self._waited), 0.0, 0.0
        return taken

    @contextmanager
    def _during(self, *, busy: int = 0, waiting: int = 0) -> Iterator[None]:
        self._change(busy=busy, waiting=waiting)
        try:
            yield
        finally:
            self._change(busy=-busy, waiting=-waiting)

    def _change(self, *, busy: int = 0, waiting: int = 0) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._busy:
                self._seconds += now - self._since
                self._waited += (now - self._since) * (self._waiting == self._busy)
            self._since = now
            self._busy += busy
            self._waiting += waiting
