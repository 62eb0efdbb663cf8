"""The Python tool: a pool of warm processes that run each call in a confined child."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import queue
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rapo_jax.config import SANDBOX_LAYERS
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.sandbox.syscall_filter import filter_code

FOLDER, HERE = Path(__file__).parent, Path("/proc/self/cwd")
"""The folder of `worker.py`, and what Linux calls the folder that a process was started in."""
GRACE_S = 10.0
"""A worker that does not answer for this long is treated as dead."""
PACKAGES = ("numpy", "sympy", "mpmath")
"""Packages that a program may import, if they are installed, beside the standard library."""
MOST_FAILED_STARTS = 3
"""So many failed starts of a worker in a row end the run: they are no mistakes of the model."""
ENDS = ("ok", "error", "timeout", "crashed")
"""How a worker's child ended; the worker sends the first letter."""
GOODBYE = b"bye"
"""Sent to `worker.py` when the pool closes; without it the pool was killed."""
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # on Linux only
WANTS_PACKAGES = re.compile(r"\b(?:numpy|sympy|mpmath)\b")


def python_tool(
    *,
    workers: int,
    timeout_s: float,
    memory_mb: int,
    output_chars: int,
    require: Sequence[str] = (),
) -> PythonTool:
    """A tool that runs programs: at most `timeout_s` seconds, `memory_mb` MiB, `output_chars`.

    A program's observation is its output and the value of its last expression; an exception adds a
    short traceback, and the outcome is how the program ended. Raises ValueError if this machine
    lacks a layer of confinement in `require`, see `SANDBOX_LAYERS`.
    """
    for key, value in (
        ("workers", workers),
        ("timeout_s", timeout_s),
        ("memory_mb", memory_mb),
        ("output_chars", output_chars),
    ):
        if value <= 0:
            raise ValueError(f"tools.{key}={value}: it must be above 0")
    tool = PythonTool(workers, timeout_s=timeout_s, memory_mb=memory_mb, output_chars=output_chars)
    wanted = SANDBOX_LAYERS if "all" in require else require
    present = set(SANDBOX_LAYERS) - set(tool.missing_layers)
    lacking = [layer for layer in wanted if layer not in present]
    if lacking:
        tool.close()
        raise ValueError(
            f"tools.python.require={tuple(require)!r}: this machine lacks {', '.join(lacking)}; "
            f"{remedy(lacking)}, or do not require it"
        )
    return tool


def remedy(layers: Sequence[str]) -> str:
    """Advice for a machine on which layers are missing."""
    if set(layers) == {"seccomp"}:
        return "install the package pyseccomp and the system's libseccomp"
    if set(layers) == {"landlock"}:
        return "use a kernel of at least 5.13 with Landlock enabled"
    return "run as root with CAP_SYS_ADMIN, or allow unprivileged user namespaces"


class _WorkerSettings(NamedTuple):
    """The settings of `worker.py`, sent to it as a line of JSON with the name of its folder."""

    timeout_s: float
    memory_mb: int
    output_chars: int
    filter: str
    """The seccomp filter in hexadecimal digits."""
    packages: list[str]
    """Folders of the packages that a program may import."""
    warm: list[str]
    """Packages that are imported before any program runs."""


class PythonTool:
    """A Tool; `missing_layers` names the parts of the confinement that this machine lacks.

    Programs that name a package of PACKAGES run in separate workers that have imported them; those
    start with the first such program.
    """

    def __init__(
        self, workers: int, *, timeout_s: float, memory_mb: int, output_chars: int
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="python_tool_")
        os.chmod(self._folder.name, 0o711)  # a child with another user id passes, but cannot list
        settings = _WorkerSettings(
            timeout_s, memory_mb, output_chars, filter_code().hex(), package_folders(), warm=[]
        )
        with_packages = settings._replace(warm=list(PACKAGES))
        self._free: dict[bool, queue.Queue[_Worker]] = {False: queue.Queue(), True: queue.Queue()}
        self._workers: list[_Worker] = []
        for has_packages, each in ((False, settings), (True, with_packages)):
            for _ in range(workers):
                worker = _Worker(self._folder.name, each)
                self._workers.append(worker)
                self._free[has_packages].put(worker)
        plain = self._workers[:workers]
        for worker in plain:
            worker.start()
        self.missing_layers = tuple(sorted({name for w in plain for name in w.greet()}))
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="python_tool")

    def __call__(self, calls: list[str]) -> list[Observation]:
        if self._closed:
            return [Observation("error: the interpreter is closed", "crashed")] * len(calls)
        if len(calls) == 1:
            return [self._run(calls[0])]
        return list(self._threads.map(self._run, calls))

    def process_ids(self) -> list[int]:
        """The process ids of the living workers."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def close(self) -> None:
        """Ends every process; later calls are crashes."""
        self._closed = True
        self._threads.shutdown()
        for worker in self._workers:
            worker.stop()
        with contextlib.suppress(OSError, RecursionError):  # programs may have left anything there
            self._folder.cleanup()

    def _run(self, code: str) -> Observation:
        if not code.strip():
            return Observation("error: empty program", "empty")
        free = self._free[WANTS_PACKAGES.search(code) is not None]
        worker = free.get()
        try:
            return worker.call(code)
        finally:
            free.put(worker)


class _Worker:
    """One process of `worker.py`, started again after its death."""

    def __init__(self, parent: str, settings: _WorkerSettings) -> None:
        self._parent = parent
        self._settings = settings
        self._timeout_s, self._output_chars = settings.timeout_s, settings.output_chars
        self.process: subprocess.Popen | None = None
        self._folder, self._failed_starts = "", 0

    def start(self) -> None:
        if not os.path.isdir(self._parent):  # a cleaner of old temporary files was here
            os.makedirs(self._parent, exist_ok=True)  # another worker may make it now
            os.chmod(self._parent, 0o711)
        self._folder = folder = tempfile.mkdtemp(dir=self._parent)
        self._socket, theirs = socket.socketpair()
        # -S -s and this environment: nothing of the user's, and sets print in one order.
        keep = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
        settings = json.dumps(self._settings._asdict() | {"folder": folder})
        self.process = subprocess.Popen(
            # A program can read the names of these files: they do not name the package's folder.
            [sys.executable, "-S", "-s", str((HERE if HERE.is_dir() else FOLDER) / "worker.py")],
            cwd=FOLDER,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"} | keep,
            start_new_session=True,
        )
        theirs.close()
        self._socket.settimeout(GRACE_S + self._timeout_s)
        self._socket.sendall(settings.encode() + b"\n")

    def greet(self) -> list[str]:
        """The worker's first message, its missing layers. Raises OSError if there is none."""
        message = b""
        while not message.endswith(b"\n"):
            if not (part := self._socket.recv(1)):  # the next message carries descriptors
                raise OSError("the python tool's worker did not start; its error is above")
            message += part
        return json.loads(message)

    def call(self, code: str) -> Observation:
        """Runs a program. Raises RuntimeError after MOST_FAILED_STARTS failed starts in a row."""
        if self.process is not None and self.process.poll() is not None:
            self.stop()  # it died between two programs, and another one takes this program
        try:
            if self.process is None:
                self._failed_starts += 1
                self.start()
                self.greet()
                self._failed_starts = 0
            return self._converse(code.encode("utf-8", "replace"))
        except (OSError, ValueError) as error:  # dead, or no answer in time
            self.stop()
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise RuntimeError(
                    f"the python tool's interpreter failed to start {self._failed_starts} times "
                    f"in a row ({error})"
                ) from None
            return Observation("error: the interpreter died", "crashed")

    def _converse(self, program: bytes) -> Observation:
        """Sends the waiting child its program, reads its output, and has the worker end it."""
        _, ends, _, _ = socket.recv_fds(self._socket, 1, 2, CLOSE_ON_EXEC)
        if len(ends) != 2:
            raise ValueError("the worker ended")
        deadline = time.monotonic() + self._timeout_s
        try:
            with contextlib.suppress(BrokenPipeError):  # killed before it began
                with open(ends[0], "wb") as pipe:
                    pipe.write(program)
            output, verdict = self._read(ends[1], deadline)
        finally:
            os.close(ends[1])
        left = max(deadline - time.monotonic(), 0.0) if verdict == "ok" else 0.0
        self._socket.send(f"{left:.6f}".encode())
        if not (letter := self._socket.recv(1).decode()):
            raise ValueError("the worker ended")
        ended = next(word for word in ENDS if word.startswith(letter))
        text = output.decode("utf-8", "replace").rstrip()
        if len(text) > self._output_chars:
            return Observation(text[: self._output_chars] + " ...", "flooded")
        match ended if verdict == "ok" else verdict:
            case "timeout":
                limit = f"timeout: the program ran longer than {self._timeout_s:g} s"
                return Observation(limit, "timeout")
            case "crashed":
                return Observation("error: the program was killed", "crashed")
            case outcome:
                return Observation(text, outcome)

    def _read(self, pipe: int, deadline: float) -> tuple[bytearray, str]:
        """The output until the program closes it, prints too much or runs too long."""
        output = bytearray()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and ready.poll(math.ceil(1e3 * left)):
            chunk = os.read(pipe, 65536)
            output += chunk
            if not chunk:
                return output, "ok"
            if len(output) > 4 * self._output_chars:
                return output, "flooded"
        return output, "timeout"

    def stop(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(OSError), self._socket:
            self._socket.send(GOODBYE)
        try:
            self.process.wait(timeout=1)  # GOODBYE ends it, and so does the end of its input
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        shutil.rmtree(self._folder, ignore_errors=True)


def package_folders() -> list[str]:
    """The folders of PACKAGES here, with the shared objects that wheels put beside them."""
    specs = filter(None, map(importlib.util.find_spec, PACKAGES))
    folders = [folder for spec in specs for folder in spec.submodule_search_locations or ()]
    both = [path for folder in folders for path in (folder, f"{folder}.libs")]
    return list(filter(os.path.isdir, both))
