"""Seconds of several works, taken in turns: a machine that changes its speed misleads less."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Timed(NamedTuple):
    seconds: list[float]
    found: Any
    """What the last call returned."""
    failure: str
    """'' or why there are no seconds."""


def interleaved(works: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Timed]:
    """Seconds of every work, in rounds of all of them, after one call each that compiles it.

    A work blocks on its results and returns small ones. One that runs out of memory is left out.
    """
    found = {name: Timed([], None, "") for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            if found[name].failure:
                continue
            started = time.perf_counter()
            try:
                result = work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                found[name] = Timed([], None, "out of memory")
                continue
            spent = [time.perf_counter() - started] if turn else []
            found[name] = Timed(found[name].seconds + spent, result, "")
    return found


def is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
