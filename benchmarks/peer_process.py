"""Virtual environments for benchmarks, and a framework in a process of its own (peers.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

WORKERS = Path(__file__).resolve().parent / "peers"
"""NAME_worker.py here runs in the environment of NAME.txt."""


class Answer(TypedDict, total=False):
    """A line of a worker: `versions` at first, then seconds and tokens of a call, or `error`."""

    versions: dict[str, str]
    cpu_seconds: float
    wall_seconds: float
    tokens: list[list[int]]
    error: str


def make_environment(folder: Path, requirements: Path, *options: str) -> Path:
    """The Python of a virtual environment with `requirements`; made unless it has just these.

    `options` are pip's.

    Raises:
        RuntimeError: pip failed; holds its last line.
    """
    python, installed = folder / "bin" / "python", folder / requirements.name
    if not (installed.is_file() and installed.read_bytes() == requirements.read_bytes()):
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "-q", *options, "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip install -r {requirements}: {last_line(done.stderr)}")
        shutil.copy(requirements, installed)
    return python


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


class Worker:
    """A framework's process; an answer is a line of JSON, with `error` where there is none."""

    def __init__(
        self, framework: str, python: Path, load: Mapping[str, object], *, threads: int
    ) -> None:
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
        script = WORKERS / f"{framework}_worker.py"
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            ["taskset", "-c", cores, str(python), str(script), json.dumps(load)],
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
            | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.loaded = self._read()

    def ask(self) -> Answer:
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last line says why it ended
        return self._read()

    def close(self) -> None:
        self._process.communicate()
        self._log.close()

    def _read(self) -> Answer:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._log.seek(0)
        return {"error": f"ended with {self._process.wait()}: {last_line(self._log.read())}"}
