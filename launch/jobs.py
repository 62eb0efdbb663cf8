"""Runs the jobs of a sweep as child processes, a few at a time; ends all of them on exit."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 120.0
"""Seconds between SIGTERM, after which a run saves a checkpoint, and SIGKILL, unless given."""
GPU_FLAG = "--xla_gpu_enable_latency_hiding_scheduler=true"
GPU_MEMORY = "0.9"
"""Both as in launch/commands.sh, which says why."""
MEMORY_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
LOCK_S = 60.0
"""Longest wait for the lock of a workdir."""
TRAINED = frozenset({"sft", "buffer", "rl"})
NOTED = TRAINED | {"evaluate", "report"}
"""Stages that a run notes in its done.json."""
SET_DEATH_SIGNAL = 1
"""Linux's PR_SET_PDEATHSIG."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep, with the settings that it changes."""

    name: str
    workdir: Path
    settings: dict[str, str]
    stages: tuple[str, ...]

    @property
    def log(self) -> Path:
        return self.workdir.with_name(self.workdir.name + ".log")

    @property
    def finished(self) -> bool:
        return set(self.stages) <= self._done()

    def ended_well(self, status: int) -> bool:
        """Whether done.json names every stage that it ever names; the status decides on others.

        Stages for reading alone are never noted, nor are suites that are evaluated alone.
        """
        noted = NOTED if TRAINED & set(self.stages) else NOTED - {"evaluate"}
        others = set(self.stages) - noted
        return set(self.stages) & noted <= self._done() and not (status and others)

    def _done(self) -> set[str]:
        try:
            return set(json.loads((self.workdir / "done.json").read_text())["stages"])
        except (OSError, ValueError, LookupError, TypeError):
            return set()

    def progress(self) -> float:
        """Share of RL steps done, for the estimated time."""
        try:
            config = json.loads((self.workdir / "config.json").read_text())
            with (self.workdir / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
                steps = re.findall(rb'"step": ?(\d+), ?"stage": ?"rl"', file.read())
            return min(1.0, int(steps[-1]) / config["rl"]["steps"])
        except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
            return 0.0


def use_environment() -> None:
    """Starts the script again in .venv if this Python lacks what it needs, and finds rapo_jax."""
    python = ROOT / ".venv" / "bin" / "python"
    if importlib.util.find_spec("matplotlib") is None and python.exists():
        os.execv(python, [str(python), *sys.argv])
    sys.path.insert(0, str(ROOT))


def run_jobs(
    jobs: Sequence[Job],
    line_of: Callable[[Job], list[str]],
    parallel: int,
    grace_s: float = GRACE_S,
) -> list[Job]:
    """Runs jobs, at most `parallel` at a time, and returns those that failed.

    Parallel jobs run on separate cores, evenly shared: programs that each use all cores are slower
    together than one after another. Every child has a process group, and none is alive when this
    function ends, even after ctrl-C, when they get `grace_s` seconds to save a checkpoint; if this
    process is killed, its children die with it (Linux).
    """
    waiting, failed, start = list(jobs), [], time.monotonic()
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    free, slots, ended = list(range(parallel)), {}, 0
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                slots[job] = free.pop(0)
                with _on_cores(share_of_cores(slots[job], parallel)):
                    running[job] = _start(job, line_of(job)), time.monotonic()
                say(f"start   {job.name}  (log: {job.log})")
            time.sleep(0.2)
            for job, (child, began) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[job]
                free.append(slots[job])
                ended += 1
                state = "done  "
                if not job.ended_well(child.returncode):
                    failed.append(job)
                    state = f"FAILED with status {child.returncode}"
                elif child.returncode:
                    state = f"done, but with status {child.returncode}"
                say(f"{state}  {job.name}  after {minutes(time.monotonic() - began)}")
                say(f"        {_estimate(ended, running, len(jobs), start)}")
            if sys.stdout.isatty():
                print(f"\r\x1b[K{_estimate(ended, running, len(jobs), start)}", end="", flush=True)
    finally:
        _end([child for child, _ in running.values()], grace_s)
        if sys.stdout.isatty():
            print("\r\x1b[K", end="")
    return failed


def share_of_cores(slot: int, parallel: int) -> set[int]:
    """Cores of the job in `slot` of `parallel`; with more jobs than cores, some share one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return set(cores[slot::parallel] or cores[slot % len(cores) :][:1]) if cores else set()


@contextlib.contextmanager
def _on_cores(cores: set[int]) -> Iterator[None]:
    """Pins processes started inside to these cores; to none if the set is empty."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def gpus() -> int:
    """How many NVIDIA GPUs a run on this machine takes: all, or none where it is told so."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return 0
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def environment() -> dict[str, str]:
    """Environment variables of a child process: it imports this checkout.

    On GPUs also what launch/gpu.sh sets. Variables of the caller win.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    made = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if gpus():
        made["XLA_FLAGS"] = " ".join(filter(None, [GPU_FLAG, os.environ.get("XLA_FLAGS")]))
        if not any(map(os.environ.get, MEMORY_FRACTIONS)):
            made[MEMORY_FRACTIONS[0]] = GPU_MEMORY
    return made


def wait_for_lock(job: Job) -> None:
    """Waits until a killed sweep's run has released the workdir's lock.

    On a file system without record locks it waits for nothing.
    """
    path, deadline, told = job.workdir / ".lock", time.monotonic() + LOCK_S, False
    while path.exists():
        try:
            with path.open("a") as file:
                return fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pass
        except OSError:  # the run prints that the folder cannot be locked
            return
        if not told:
            say(f"{job.name}: another process is at work there; waiting {LOCK_S:.0f} s for its end")
            told = True
        if time.monotonic() > deadline:  # the new run says that another one is at work
            return
        time.sleep(0.2)


def _start(job: Job, line: list[str]) -> subprocess.Popen[bytes]:
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    wait_for_lock(job)
    with job.log.open("ab") as log:
        log.write(f"$ {shlex.join(line)}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, __file__, str(os.getpid()), *line],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(),
            start_new_session=True,
        )  # fmt: skip


def _die_with_parent(parent: int, line: list[str]) -> None:
    """Becomes the program of `line`, which Linux kills when the process `parent` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            sys.exit(1)
    os.execv(line[0], line)


def _end(children: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """Ends children and all processes that they started: SIGTERM, after `grace_s` SIGKILL."""
    for child in children:
        _signal(child, signal.SIGTERM)
    if children:
        with contextlib.suppress(OSError):  # the terminal may be gone
            say(
                f"runs finish their step, save a checkpoint and end; after {grace_s:.0f} s "
                "(--grace), or a second ctrl-C, they are killed"
            )
    deadline = time.monotonic() + grace_s
    try:
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
    finally:  # also after a second ctrl-C
        for child in children:
            _signal(child, signal.SIGKILL)
            child.wait()


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def say(text: str) -> None:
    print(("\r\x1b[K" if sys.stdout.isatty() else "") + text, flush=True)


def _estimate(ended: int, running: Iterable[Job], total: int, start: float) -> str:
    """Progress of the sweep, and the remaining time at the speed so far."""
    done = ended + sum(job.progress() for job in running)
    spent = time.monotonic() - start
    left = f", about {minutes(spent * (total - done) / done)} left" if done else ""
    return f"{ended} of {total} runs ended, {minutes(spent)} spent{left}"


def minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


if __name__ == "__main__":  # not by preexec_fn, which is not safe where there are threads
    _die_with_parent(int(sys.argv[1]), sys.argv[2:])
