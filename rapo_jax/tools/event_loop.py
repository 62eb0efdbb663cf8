"""One event loop in a thread, for asynchronous user tools and MCP servers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import TypeVar

Value = TypeVar("Value")

_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def run_async(coroutine: Coroutine[object, object, Value], timeout_s: float) -> Value:
    """The coroutine's value, from any thread; it is cancelled after `timeout_s` (TimeoutError)."""
    future = asyncio.run_coroutine_threadsafe(_contained(coroutine), _loop())
    try:
        return future.result(timeout_s)
    finally:
        future.cancel()  # does nothing to one that is done


async def _contained(coroutine: Coroutine[object, object, Value]) -> Value:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:  # they would end the loop of all others
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            run = _loops[0].run_forever
            threading.Thread(target=run, daemon=True, name="async_tools").start()
    return _loops[0]
