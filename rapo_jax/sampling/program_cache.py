"""Keeps programs that call the host in jax's persistent compilation cache, as jax 0.11 does itself.

jax 0.10 writes no such program to it, so that every start compiled the rollout anew. But jaxlib
names callbacks in a CPU program by their place in a list, and takes that list when it loads a
program, too: one that another process compiled can be given the callbacks of this one. jax 0.11,
which needs a newer Python, does so; here three functions of `jax._src.compiler` are wrapped, or
none of them if they are not those that are known here.

On CPUs alone: that jaxlib 0.10 does the same on GPUs was never tried, and on TPUs callbacks are
sent over channels of the program.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import compiler

_log = logging.getLogger(__name__)

PLATFORMS = ("cpu",)
SUFFIX = "-with-callbacks"
"""Of cache keys: a process that loads such a program without its callbacks crashes."""
KNOWN = {
    "compile_or_get_cached": (
        "backend", "computation", "devices", "compile_options", "host_callbacks",
        "executable_devices", "pgle_profiler",
    ),
    "_cache_read": (
        "module_name", "cache_key", "compile_options", "backend", "executable_devices",
    ),
    "_cache_write": (
        "cache_key", "compile_time_secs", "module_name", "backend", "executable", "host_callbacks",
    ),
}  # fmt: skip
"""Parameters of the functions that are wrapped, in jax 0.10."""


class _WithCallbacks:
    """A client that gives the programs it loads these callbacks, and else is the client."""

    def __init__(self, client: Any, callbacks: Sequence[Callable[..., Any]]) -> None:
        self._client, self._callbacks = client, callbacks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def deserialize_executable(self, *arguments: Any, **named: Any) -> Any:
        return self._client.deserialize_executable(
            *arguments, host_callbacks=self._callbacks, **named
        )


def keep_programs_with_callbacks() -> bool:
    """From now on, programs that call the host are read from the compilation cache and written.

    A program that is read calls the functions of the process that reads it, not those of the one
    that compiled it. Does nothing the second time, and from jax 0.11 on, which keeps them itself.
    Where no cache is configured, none is used.

    Returns:
        False, after a line in the log, if this jax works in another way; such programs are then
        compiled at every start.
    """
    before: dict[str, Any] = {name: getattr(compiler, name, None) for name in KNOWN}
    get, read, write = before.values()
    if getattr(get, "__module__", "") == __name__ or "host_callbacks" in _parameters(read):
        return True
    if {name: _parameters(function) for name, function in before.items()} != KNOWN:
        _log.warning(
            "jax %s caches programs in another way than is known here: those that call the host "
            "are compiled at every start",
            jax.__version__,
        )
        return False

    def compile_or_get_cached(
        backend: Any, computation: Any, devices: Any, options: Any, callbacks: Any, *rest: Any,
        **named: Any,
    ) -> Any:  # fmt: skip
        if callbacks and backend.platform in PLATFORMS:
            backend = _WithCallbacks(backend, callbacks)
        return get(backend, computation, devices, options, callbacks, *rest, **named)

    def cache_read(name: str, key: str, options: Any, backend: Any, devices: Any) -> Any:
        return read(name, _own(key, backend), options, backend, devices)

    def cache_write(
        key: str, seconds: float, name: str, backend: Any, executable: Any, callbacks: Any
    ) -> None:
        kept = () if isinstance(backend, _WithCallbacks) else callbacks
        write(_own(key, backend), seconds, name, backend, executable, kept)

    for name, wrapped in zip(KNOWN, (compile_or_get_cached, cache_read, cache_write), strict=True):
        setattr(compiler, name, wrapped)
    return True


def _own(key: str, backend: object) -> str:
    return key + SUFFIX if isinstance(backend, _WithCallbacks) else key


def _parameters(function: Callable[..., Any] | None) -> tuple[str, ...]:
    return () if function is None else tuple(inspect.signature(function).parameters)
