"""Faults at a fixed rate, the same in every run, and how many were injected of each kind."""

from __future__ import annotations

import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable

RATE = 0.3
Kind = str | bytes
HUNG_S, LATE_S = 1.0, 0.05


class Faults:
    """Chooses a kind of fault for about RATE of the calls by their text and its occurrences so far.

    `counts` has '' for those without a fault.
    """

    def __init__(self, *kinds: Kind, rate: float = RATE) -> None:
        self._kinds, self._rate = kinds, rate
        self._lock = threading.Lock()
        self._drawn: Counter[str] = Counter()
        self.counts: Counter[Kind] = Counter()

    def draw(self, text: str) -> Kind:
        with self._lock:
            number = zlib.crc32(f"{text}#{self._drawn[text]}".encode()) % 10_000
            kind = self._kinds[number % len(self._kinds)] if number < 10_000 * self._rate else ""
            self._drawn[text] += 1
            self.counts[kind] += 1
        return kind


def faulty(function: Callable[[str], str], faults: Faults) -> Callable[[str], str]:
    """The function of a tool that raises, hangs, floods or is late for some texts."""

    def call(text: str) -> str:
        match faults.draw(text):
            case "error":
                raise OSError("the wire is cut")
            case "hang":
                time.sleep(HUNG_S)
            case "flood":
                return "x" * 1_000_000
            case "late":
                time.sleep(LATE_S)
        return function(text)

    return call
