r"""Equivalence of maths answers (`1/2` = `0.5` = `\frac12`) by math-verify in worker processes.

Parsing and simplifying a model's answer may take for ever or all memory. Each comparison therefore
runs in a worker process under a hard deadline and a memory limit, and time-outs are counted apart
from differences.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from rapo_jax.scoring.answers import normalised

WORKER = Path(__file__).with_name("maths_worker.py")
VERDICTS = ("equal", "different", "timeout", "crashed")
DEADLINE_S = 3.0
MEMORY_MB = 1024
WORKERS = 2
START_S = 120.0
"""Seconds that a worker may take to import sympy, on a busy machine."""
GRACE_S = 5.0
"""A worker that has not ended itself this long after the deadline is killed."""
MAX_CHARS = 1000
"""A longer answer is compared as text only: no right answer is so long."""
MOST_FAILED = 10_000
"""Pairs that are remembered to have failed once."""
CACHED = 65_536

_WORDS = re.compile(r"[^\W\d_]{3,}")
_MATHS = re.compile(r"[\\\d=+*/^<>|]")


def math_equal(prediction: str, gold: str) -> bool:
    """Whether two answers mean the same; a comparison that timed out or crashed is not equal."""
    return _SHARED.compare(prediction, gold) == "equal"


def math_counts() -> dict[str, int]:
    """How often `math_equal` reached each of `VERDICTS` in this process, repeats included."""
    return dict(_SHARED.counts)


def check_math_verify() -> None:
    """Raises ValueError where math-verify is not installed; to be called before a long job."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            "task.metric='math': the package math-verify is missing; "
            "pip install -r requirements.txt"
        )


class _Failed(Exception):
    """A comparison without a result, which may be the machine's fault: it is tried once more."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class MathVerifier:
    """Compares answers from any thread; `counts` by verdict. Workers start when they are needed."""

    def __init__(
        self, *, workers: int, deadline_s: float, memory_mb: int, command: tuple[str, ...] = ()
    ) -> None:
        command = command or (sys.executable, "-s", "-P", str(WORKER))
        arguments = (*command, str(deadline_s), str(memory_mb))
        self.counts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
        self._lock = threading.Lock()
        self._workers = [_Worker(arguments, deadline_s) for _ in range(workers)]
        # Last in, first out: a single thread uses one process only.
        self._free: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._known = functools.lru_cache(maxsize=CACHED)(self._ask)
        self._failed_once: set[tuple[str, str]] = set()

    def compare(self, prediction: str, gold: str) -> str:
        """One of `VERDICTS`. Raises RuntimeError if no worker can be started at all."""
        try:
            verdict = _compare_text(prediction, gold) or self._known(
                prediction.strip(), gold.strip()
            )
        except _Failed as failed:
            verdict = failed.verdict
        with self._lock:
            self.counts[verdict] += 1
        return verdict

    def close(self) -> None:
        """Ends the processes; a later comparison starts one again."""
        for worker in self._workers:
            worker.stop()

    def _ask(self, prediction: str, gold: str) -> str:
        """The verdict, to be cached; of two answers that fail for the first time an exception."""
        worker = self._free.get()
        try:
            verdict = worker.compare(prediction, gold)
        finally:
            self._free.put(worker)
        if verdict in ("equal", "different") or (prediction, gold) in self._failed_once:
            return verdict
        if len(self._failed_once) >= MOST_FAILED:
            self._failed_once.clear()
        self._failed_once.add((prediction, gold))
        raise _Failed(verdict)


def _compare_text(prediction: str, gold: str) -> str:
    """The verdict if it needs no algebra, else ''.

    math-verify reads a word as a product of letters, so that 'Paris' would equal 'pairs': a gold
    answer of words is compared as words.
    """
    predicted, wanted = prediction.strip(), gold.strip()
    if not predicted or not wanted:
        return "different"
    if predicted.casefold() == wanted.casefold():
        return "equal"
    if _WORDS.search(wanted) and not _MATHS.search(wanted):
        plain = re.sub(r"\\(?:text|mathrm|textbf)\b", " ", predicted)
        return "equal" if normalised(plain) == normalised(wanted) else "different"
    return "different" if max(len(predicted), len(wanted)) > MAX_CHARS else ""


class _Worker:
    """One process of `maths_worker.py`, started when it is needed, and again after its end."""

    def __init__(self, arguments: tuple[str, ...], deadline_s: float) -> None:
        self._arguments = arguments
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[str] | None = None

    def compare(self, prediction: str, gold: str) -> str:
        process = self._process or self._start()
        reply, hung = _reply(process, json.dumps([prediction, gold]), self._deadline_s + GRACE_S)
        if reply in ("true", "false"):
            return "equal" if reply == "true" else "different"
        code = self.stop()
        return "timeout" if hung or code == -signal.SIGALRM else "crashed"

    def stop(self) -> int:
        """Ends the process; returns its exit status, negative for a signal, 0 without a process."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):  # it may have ended with our last line unread
            process.stdin.close()
        try:
            code = process.wait(timeout=1)  # an idle one ends with its input
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code

    def _start(self) -> subprocess.Popen[str]:
        check_math_verify()
        keep = {key: os.environ[key] for key in ("LD_LIBRARY_PATH", "PATH") if key in os.environ}
        process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"} | keep,
            start_new_session=True,  # Ctrl-C is the trainer's to handle
        )
        self._process = process
        if _reply(process, "", START_S)[0] != '"ready"':
            code = self.stop()
            raise RuntimeError(
                f"task.metric='math': the process of math-verify ended with status {code} at its "
                f"start; try: python {WORKER} {self._deadline_s} {MEMORY_MB}"
            )
        return process


def _reply(process: subprocess.Popen[str], line: str, seconds: float) -> tuple[str, bool]:
    """Sends a line, if any; returns (the reply, '' if the process ended; whether we killed it)."""
    assert process.stdin is not None and process.stdout is not None
    hung = threading.Event()

    def end() -> None:
        hung.set()
        process.kill()

    watchdog = threading.Timer(seconds, end)
    watchdog.start()
    try:
        if line:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        return process.stdout.readline().strip(), hung.is_set()
    except OSError:
        return "", hung.is_set()
    finally:
        watchdog.cancel()


_SHARED = MathVerifier(workers=WORKERS, deadline_s=DEADLINE_S, memory_mb=MEMORY_MB)
atexit.register(_SHARED.close)
