"""Kills, stops and hangs a small run at random moments, soaks it, and fuzzes what reads files.

    python benchmarks/faults.py --minutes=15

Prints a table in Markdown. Every interrupted run must end with the metrics (but for times),
parameters and trajectories of one that was not. The status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import fuzz
from benchmarks.peers import machine
from benchmarks.small_runs import (
    PATIENCE_S,
    build_failing_disk,
    difference,
    ended,
    failing,
    finish,
    start,
)
from rapo_jax.tasks.reward import outcome_reward

WATCHDOG_S = 40.0
SHARES = {"kill": 0.35, "disk": 0.15, "hosts": 0.2, "soak": 0.15, "fuzz": 0.15}
"""Of the time, for each part."""
CALLS = itertools.count(1)


class Row(NamedTuple):
    fault: str
    trials: int
    passed: int
    notes: str


def reward(text: str, gold_answers: Sequence[str]) -> float:
    """The paper's; call HANG_AT of the environment, counted from 1, never returns."""
    call = next(CALLS)
    while call == int(os.environ.get("HANG_AT", 0)):
        time.sleep(1)
    return outcome_reward(text, gold_answers)


def whole_run(folder: Path) -> Path:
    """The workdir of a run that nothing disturbs, made once for all parts."""
    whole = folder / "whole"
    if not whole.exists():
        finish([start(whole, {})], whole)
    return whole


def kill(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    """kill -9 at random moments, again and again until the run has ended; and rewards that hang.

    A trial is one kill; it passes if the run that it interrupted ends as the uninterrupted one.
    """
    whole = whole_run(folder)
    started = time.monotonic()
    finish([start(folder / "again", {})], folder / "again")  # its programs are cached
    span = time.monotonic() - started
    trials, passed, runs, wrong = 0, 0, 0, []
    while time.monotonic() < until or not trials:
        workdir, kills = folder / f"killed-{runs}", 0
        while True:
            process = start(workdir, {})
            if (status := ended(process, rng.uniform(0.1, 0.7) * span)) is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        wrong += [f"status {status}"] * (status != 0) or [difference(workdir, whole)]
        runs, trials, passed = runs + 1, trials + kills, passed + kills * (wrong[-1] == "")
        shutil.rmtree(workdir, ignore_errors=not wrong[-1])
    notes = f"of {runs} runs; {', '.join(filter(None, wrong)) or 'all bit-identical'}"
    yield Row("kill -9 at random moments over all stages", trials, passed, notes)
    yield hang(folder / "hung", whole, rng)


def hang(workdir: Path, whole: Path, rng: random.Random) -> Row:
    process = start(workdir, {"watchdog.after_s": WATCHDOG_S}, HANG_AT=str(rng.randint(80, 100)))
    status = ended(process, PATIENCE_S)
    stacks = "in reward" in workdir.with_suffix(".log").read_text(errors="replace")
    finish([start(workdir, {})], workdir)
    wrong = difference(workdir, whole)
    notes = f"status {status}, stack of the reward shown: {stacks}; {wrong or 'bit-identical'}"
    return Row("a reward that never returns", 1, int(status == 1 and stacks and not wrong), notes)


def disk(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    """A disk that is full from a random write on, or fails one write: what is there is whole.

    The run may end, or continue where the write was of something that it can do without; started
    again, it ends as the uninterrupted one.
    """
    library = build_failing_disk(folder)
    whole = whole_run(folder)
    counted = folder / "counted"
    finish([start(counted, {}, **failing(library, counted, count=folder / "writes"))], counted)
    writes = int((folder / "writes").read_text())
    codes = (errno.ENOSPC, errno.EIO)
    for code, deadline in zip(codes, deadlines(until, 2), strict=True):
        trials, passed, outcomes = 0, 0, Counter()
        while time.monotonic() < deadline or not trials:
            workdir = folder / f"disk-{code}-{trials}"
            first = rng.randint(1, writes)
            faulty = failing(library, workdir, first=first, code=code)
            status = ended(start(workdir, {}, **faulty), PATIENCE_S)
            again = ended(start(workdir, {}), PATIENCE_S)
            wrong = f"status {again}" if again else difference(workdir, whole)
            outcomes[f"status {status}"] += 1
            outcomes[wrong] += bool(wrong)
            trials, passed = trials + 1, passed + (not wrong)
        notes = ", ".join(f"{count} × {what}" for what, count in outcomes.items() if count)
        name = errno.errorcode[code]
        yield Row(
            f"a disk that answers {name} from one of {writes} writes on", trials, passed, notes
        )


def deadlines(until: float, parts: int) -> list[float]:
    """The ends of so many equal parts of the time from now to `until`."""
    now = time.monotonic()
    return [now + (until - now) * (part + 1) / parts for part in range(parts)]


def taken_from(whole: Path) -> dict[str, object]:
    """Settings of a run that takes the cold start, the buffer and the data of another."""
    return {
        "sft.folder": whole / "coldstart",
        "buffer.folder": whole / "buffer",
        "task.data_dir": whole / "data",
    }


def hosts(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    """Two and four processes, one killed or stopped: the others end, and all resume exactly."""
    shared = taken_from(whole_run(folder)) | {
        "stages": ("rl", "evaluate"),
        "watchdog.after_s": WATCHDOG_S,
        "rollout.driver": "jit",  # the other one drives a single process
    }

    def group(workdir: Path, processes: int) -> list[subprocess.Popen]:
        with socket.socket() as listening:
            listening.bind(("localhost", 0))
            where = f"localhost:{listening.getsockname()[1]}"
        explicit = {"mode": "explicit", "coordinator": where, "processes": processes}
        named = {f"distributed.{key}": value for key, value in explicit.items()}
        named["rollout.questions"] = processes
        return [
            start(workdir, shared | named | {"distributed.process": n}) for n in range(processes)
        ]

    for processes, until_then in zip((2, 4), deadlines(until, 2), strict=True):
        whole = folder / f"of-{processes}"
        started = time.monotonic()
        finish(group(whole, processes), whole)
        span = time.monotonic() - started
        signals = (signal.SIGKILL, signal.SIGSTOP)
        for how, deadline in zip(signals, deadlines(until_then, 2), strict=True):
            trials, passed, longest, wrong = 0, 0, 0.0, []
            while time.monotonic() < deadline or not trials:
                workdir = folder / f"of-{processes}-{how.name}-{trials}"
                running = group(workdir, processes)
                victim = running.pop(rng.randrange(processes))
                time.sleep(rng.uniform(0.4, 0.9) * span)
                victim.send_signal(how)
                sent = time.monotonic()
                for each in running:
                    ended(each, PATIENCE_S)
                waited = time.monotonic() - sent
                victim.kill()
                finish(group(workdir, processes), workdir)
                wrong += filter(None, [difference(workdir, whole)])
                longest, trials = max(longest, waited), trials + 1
                passed += not wrong and waited < 2 * WATCHDOG_S
            notes = (
                f"the others ended within {longest:.0f} s; {', '.join(wrong) or 'bit-identical'}"
            )
            yield Row(f"one of {processes} processes: {how.name}", trials, passed, notes)


def soak(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    """Memory, open files and time of a step over many steps."""
    workdir = folder / "soak"
    changes = taken_from(whole_run(folder)) | {
        "stages": ("rl",),
        "rl.steps": 2000,
        "checkpoint.every": 50,
    }
    process, seen = start(workdir, changes), []
    while process.poll() is None and time.monotonic() < until:
        time.sleep(2)
        steps = count_lines(workdir / "metrics.jsonl")
        memory = resident_mb(process.pid)
        if steps >= 20 and memory:  # all programs are compiled; a process that has ended has none
            seen.append((steps, memory, len(open_files(process.pid))))
    process.send_signal(signal.SIGTERM)
    status = ended(process, PATIENCE_S)
    rows = sorted(metrics_times(workdir).items())[20:]
    tenth = max(1, len(rows) // 10)
    first, last = (np.median([x for _, x in part]) for part in (rows[:tenth], rows[-tenth:]))
    # medians: a checkpoint that is being written has files open and takes memory
    count, part = len(seen), max(1, len(seen) // 10)
    parts = (seen[at : at + part] for at in (count // 10, count // 2, count - part))
    (_, memory, files), (_, half, _), (_, memory_last, files_last) = (
        np.median(readings, axis=0) for readings in parts
    )
    steps = seen[-1][0]
    notes = (
        f"{steps} steps; resident {memory:.0f}, {half:.0f}, {memory_last:.0f} MB after a tenth, a "
        f"half, all of them; open files {files:.0f} -> {files_last:.0f}, a step {first:.2f} -> "
        f"{last:.2f} s"
    )
    # Of 2,000 steps the first 1,000 added 6 %, the others nothing.
    flat = memory_last < 1.1 * memory and files_last <= files + 2
    yield Row("soak", 1, int(flat and status == 0), notes)


def metrics_times(workdir: Path) -> dict[int, float]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["time/step"] for row in rows if "time/step" in row}


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


def fuzzing(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    for result in fuzz.run_all(folder, seconds=until - time.monotonic()):
        notes = f"{result.inputs} inputs by {result.engine}{result.problem and '; '}"
        yield Row(f"fuzz {result.target}", 1, int(not result.problem), notes + result.problem)


Part = Callable[[Path, float, random.Random], Iterator[Row]]
PARTS: dict[str, Part] = {
    "kill": kill, "disk": disk, "hosts": hosts, "soak": soak, "fuzz": fuzzing,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng, folder = random.Random(flags.seed), Path(tempfile.mkdtemp(prefix="rapo_faults_"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    print(f"{', '.join(machine().values())}; seed {flags.seed}\n")
    print("| Fault | Trials | Passed | Measured |")
    print("| --- | --- | --- | --- |", flush=True)
    failed = False
    for name in flags.parts:
        share = SHARES[name] / sum(SHARES[part] for part in flags.parts)
        for row in PARTS[name](folder, time.monotonic() + 60 * flags.minutes * share, rng):
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
            failed |= row.passed < row.trials
    if not failed:
        shutil.rmtree(folder)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
