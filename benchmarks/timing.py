"""Times several works in turns, so that a machine whose speed changes misleads less."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")


class Timed(NamedTuple, Generic[Result]):
    seconds: list[float]
    result: Result | None
    """What the last call returned."""
    failure: str
    """Why there are no seconds, or ''."""


def interleaved(
    works: Mapping[str, Callable[[], Result]], *, repeats: int
) -> dict[str, Timed[Result]]:
    """Seconds of every work, in rounds of all of them, after one call each that compiles it.

    A work blocks until its results are computed. One that runs out of memory is left out.
    """
    timed: dict[str, Timed[Result]] = {name: Timed([], None, "") for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            if timed[name].failure:
                continue
            started = time.perf_counter()
            try:
                result = work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                timed[name] = Timed([], None, "out of memory")
                continue
            spent = [time.perf_counter() - started] if turn else []
            timed[name] = Timed(timed[name].seconds + spent, result, "")
    return timed


def is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
