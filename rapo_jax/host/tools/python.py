"""The Python tool: a pool of warm processes that run each call in a confined child."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rapo_jax.host.tools.observation import Observation

WORKER = Path(__file__).with_name("python_worker.py")
GRACE_S = 10.0
"""A worker that has not answered this long after a program's own limit is taken for dead."""


def python_tool(*, workers: int, timeout_s: float, memory_mb: int, output_chars: int) -> PythonTool:
    """A tool that runs programs: at most `timeout_s` seconds, `memory_mb` MiB, `output_chars`.

    A program's observation is what it printed and the value of its last expression; an exception
    adds its last line, and the outcome says how the program ended.
    """
    for key, value in (
        ("workers", workers),
        ("timeout_s", timeout_s),
        ("memory_mb", memory_mb),
    ):
        if value <= 0:
            raise ValueError(f"tools.python.{key}={value}: it must be above 0")
    return PythonTool(workers, (timeout_s, memory_mb, output_chars))


class PythonTool:
    """A Tool; `missing_layers` names the parts of the confinement that this machine refused."""

    def __init__(self, workers: int, limits: tuple[float, int, int]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="python_tool_")
        os.chmod(self._folder.name, 0o711)  # a child with another user id passes, but cannot list
        self._workers = [_Worker(self._folder.name, limits) for _ in range(workers)]
        for worker in self._workers:
            worker.start()
        self.missing_layers = tuple(sorted({name for w in self._workers for name in w.greet()}))
        self._closed = False
        self._free: queue.Queue[_Worker] = queue.Queue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="python_tool")

    def __call__(self, calls: list[str]) -> list[Observation]:
        if self._closed:
            return [Observation("error: the interpreter is closed", "crashed")] * len(calls)
        if len(calls) == 1:
            return [self._run(calls[0])]
        return list(self._threads.map(self._run, calls))

    def process_ids(self) -> list[int]:
        """The living workers' processes: what to look at when one hangs."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def close(self) -> None:
        """Ends every process; a later call finds the tool crashed."""
        self._closed = True
        self._threads.shutdown()
        for worker in self._workers:
            worker.stop()
        with contextlib.suppress(OSError, RecursionError):  # whatever a program left there
            self._folder.cleanup()

    def _run(self, code: str) -> Observation:
        if not code.strip():
            return Observation("error: empty program", "empty")
        worker = self._free.get()
        try:
            return worker.call(code)
        finally:
            self._free.put(worker)


class _Worker:
    """One process of `python_worker.py`, started again whenever it is found dead."""

    def __init__(self, parent: str, limits: tuple[float, int, int]) -> None:
        self._parent = parent
        self._limits = limits
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        folder = tempfile.mkdtemp(dir=self._parent)
        ours, theirs = socket.socketpair()
        # -S -s -P and this environment: nothing of the user's, and sets print in one order.
        keep = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
        arguments = ["-S", "-s", "-P", str(WORKER), folder, *map(str, self._limits)]
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"} | keep,
            start_new_session=True,
        )
        theirs.close()
        ours.settimeout(self._limits[0] + GRACE_S)
        self._socket = ours
        self._stream = ours.makefile("rwb")

    def greet(self) -> list[str]:
        """The worker's first line: the layers it misses."""
        return json.loads(self._stream.readline())

    def call(self, code: str) -> Observation:
        try:
            if self.process is None:
                self.start()
                self.greet()
            self._stream.write(json.dumps(code).encode() + b"\n")
            self._stream.flush()
            outcome, text = json.loads(self._stream.readline())
        except (OSError, ValueError):  # dead or mute, a timeout included
            self.stop()
            return Observation("error: the interpreter died", "crashed")
        return Observation(text, outcome)

    def stop(self) -> None:
        if self.process is None:
            return
        for end in (self._stream, self._socket):
            with contextlib.suppress(OSError, ValueError):
                end.close()
        try:
            self.process.wait(timeout=1)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
