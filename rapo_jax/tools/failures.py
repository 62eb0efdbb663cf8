"""Log of a tool's failures that stays short, since a training run makes thousands of calls."""

from __future__ import annotations

import logging
import threading

_log = logging.getLogger(__name__)


class FailureLog:
    """Logs failures number 1, 10, 100, …, from any thread; `name` begins each message."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._count = 0

    def __call__(self, text: str, error: BaseException | None = None) -> None:
        with self._lock:
            self._count += 1
            count = self._count
        if str(count).strip("0") == "1":
            _log.warning("%s failed (number %d): %s", self._name, count, text, exc_info=error)
