"""Kills, stops and hangs a small run at random moments, soaks it, and fuzzes what reads files.

    python benchmarks/faults.py --minutes=15

Prints a table in Markdown. Every interrupted run must end with the metrics (but for times),
parameters and trajectories of one that was not. The status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import fuzz
from benchmarks.peers import machine
from rapo_jax.tasks.reward import outcome_reward
from rapo_jax.train.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "sft.steps": 40, "sft.checkpoint_every": 10, "checkpoint.every": 1, "rl.steps": 6,
    "task.reward": "benchmarks.faults:reward", "rollout.driver": "host",
}  # fmt: skip
WATCHDOG_S = 40.0
PATIENCE_S = 600.0
SHARES = {"kill": 0.4, "hosts": 0.25, "soak": 0.2, "fuzz": 0.15}
"""Of the time, for each part."""
CALLS = itertools.count(1)
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


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


def start(workdir: Path, changes: Mapping[str, object], **variables: str) -> subprocess.Popen:
    flags = [f"--config.{key}={value}" for key, value in (SMALL | dict(changes)).items()]
    command = [sys.executable, "-m", "rapo_jax.main", f"--config={ROOT}/tests/small.py"]
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *flags],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": QUICK} | variables,
            stdout=log,
            stderr=log,
        )


def ended(process: subprocess.Popen, seconds: float) -> int | None:
    """Exit status; None if it runs on."""
    try:
        return process.wait(timeout=max(seconds, 0))
    except subprocess.TimeoutExpired:
        return None


def finish(processes: Sequence[subprocess.Popen], workdir: Path) -> None:
    """Waits for their ends, which must be good ones."""
    for process in processes:
        if (status := ended(process, PATIENCE_S)) != 0:
            text = workdir.with_suffix(".log").read_text(errors="replace")
            raise RuntimeError(f"status {status}:\n{text[-3000:]}")


def difference(workdir: Path, whole: Path) -> str:
    """What of a run differs from the uninterrupted one; '' if nothing does."""
    for name in ("trajectories.jsonl", "buffer/step_traces.jsonl", "buffer/trajectories.jsonl"):
        one, other = (folder / name for folder in (workdir, whole))
        if one.is_file() != other.is_file() or (
            one.is_file() and one.read_bytes() != other.read_bytes()
        ):
            return name
    if metrics(workdir) != metrics(whole):
        return "metrics.jsonl"
    for folder in ("coldstart/checkpoints", "checkpoints"):
        if (workdir / folder).is_dir() and parameters(workdir / folder) != parameters(
            whole / folder
        ):
            return folder
    return ""


def metrics(workdir: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Rows by stage and step, without times."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {
        (row["stage"], row["step"]): {
            key: x for key, x in row.items() if not key.startswith(("time/", "cpu/"))
        }
        for row in rows
    }


def parameters(folder: Path) -> list[bytes]:
    import jax

    store = Checkpoints(folder, keep=None)
    leaves = jax.tree.leaves(store.restore_params())
    store.close()
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def kill(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    """kill -9 at random moments, again and again until the run has ended; and rewards that hang."""
    whole = folder / "whole"
    finish([start(whole, {})], whole)
    started = time.monotonic()
    finish([start(folder / "again", {})], folder / "again")  # its programs are cached
    span = time.monotonic() - started
    kills, runs, same, wrong = 0, 0, 0, []
    while time.monotonic() < until or not runs:
        workdir = folder / f"killed-{runs}"
        while True:
            process = start(workdir, {})
            if (status := ended(process, rng.uniform(0.1, 0.7) * span)) is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        wrong += [f"status {status}"] * (status != 0) or [difference(workdir, whole)]
        runs, same = runs + 1, same + (wrong[-1] == "")
    notes = f"{kills} kills; {', '.join(filter(None, wrong)) or 'all bit-identical'}"
    yield Row("kill -9, all stages, until the run ends", runs, same, notes)
    yield hang(folder / "hung", whole, rng)


def hang(workdir: Path, whole: Path, rng: random.Random) -> Row:
    process = start(workdir, {"watchdog.after_s": WATCHDOG_S}, HANG_AT=str(rng.randint(80, 100)))
    status = ended(process, PATIENCE_S)
    stacks = "in reward" in workdir.with_suffix(".log").read_text(errors="replace")
    finish([start(workdir, {})], workdir)
    wrong = difference(workdir, whole)
    notes = f"status {status}, stack of the reward shown: {stacks}; {wrong or 'bit-identical'}"
    return Row("a reward that never returns", 1, int(status == 1 and stacks and not wrong), notes)


def hosts(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    """Two processes, one of them killed or stopped: the other one ends, and both resume exactly."""
    shared = {
        "sft.folder": folder / "whole/coldstart",
        "buffer.folder": folder / "whole/buffer",
        "task.data_dir": folder / "whole/data",
        "stages": ("rl", "evaluate"),
        "watchdog.after_s": WATCHDOG_S,
        "rollout.driver": "jit",  # the other one drives a single process
    }

    def pair(workdir: Path) -> list[subprocess.Popen]:
        with socket.socket() as listening:
            listening.bind(("localhost", 0))
            where = f"localhost:{listening.getsockname()[1]}"
        explicit = {"mode": "explicit", "coordinator": where, "processes": 2}
        named = {f"distributed.{key}": value for key, value in explicit.items()}
        return [start(workdir, shared | named | {"distributed.process": n}) for n in range(2)]

    whole = folder / "two"
    started = time.monotonic()
    finish(pair(whole), whole)
    span, number = time.monotonic() - started, 0
    for how in (signal.SIGKILL, signal.SIGSTOP):
        trials, passed, longest, wrong = 0, 0, 0.0, ""
        while time.monotonic() < until or not trials:
            workdir, number = folder / f"two-{number}", number + 1
            processes = pair(workdir)
            victim = rng.randrange(2)
            time.sleep(rng.uniform(0.4, 0.9) * span)
            processes[victim].send_signal(how)
            sent = time.monotonic()
            ended(processes[1 - victim], PATIENCE_S)
            waited = time.monotonic() - sent
            processes[victim].kill()
            finish(pair(workdir), workdir)
            wrong = difference(workdir, whole)
            longest, trials = max(longest, waited), trials + 1
            passed += not wrong and waited < 2 * WATCHDOG_S
            if trials >= 2 and how == signal.SIGKILL:
                break
        notes = f"the other ended within {longest:.0f} s; {wrong or 'bit-identical'}"
        yield Row(f"one of two processes: {how.name}", trials, passed, notes)


def soak(folder: Path, until: float, rng: random.Random) -> Iterator[Row]:
    """Memory, open files and time of a step over many steps."""
    workdir = folder / "soak"
    changes = {
        "sft.folder": folder / "whole/coldstart",
        "buffer.folder": folder / "whole/buffer",
        "task.data_dir": folder / "whole/data",
        "stages": ("rl",),
        "rl.steps": 2000,
        "checkpoint.every": 50,
    }
    process, seen = start(workdir, changes), []
    while process.poll() is None and time.monotonic() < until:
        time.sleep(2)
        steps = count_lines(workdir / "metrics.jsonl")
        if steps >= 20:  # all programs are compiled
            seen.append((steps, resident_mb(process.pid), len(open_files(process.pid))))
    process.send_signal(signal.SIGTERM)
    status = ended(process, PATIENCE_S)
    rows = sorted(metrics_times(workdir).items())[20:]
    tenth = max(1, len(rows) // 10)
    first, last = (np.median([x for _, x in part]) for part in (rows[:tenth], rows[-tenth:]))
    (_, memory, files), (steps, memory_last, files_last) = seen[len(seen) // 10], seen[-1]
    half = seen[len(seen) // 2][1]
    notes = (
        f"{steps} steps; resident {memory:.0f}, {half:.0f}, {memory_last:.0f} MB after a tenth, a "
        f"half, all of them; open files {files} -> {files_last}, a step {first:.2f} -> {last:.2f} s"
    )
    # Of 2,000 steps the first 800 added 11 %, the others nothing.
    flat = memory_last < 1.15 * memory and files_last <= files + 2
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
PARTS: dict[str, Part] = {"kill": kill, "hosts": hosts, "soak": soak, "fuzz": fuzzing}


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
