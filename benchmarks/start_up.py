"""CPU-seconds and seconds from a command to the end of its first RL step, of several checkouts.

    git worktree add ../before COMMIT
    python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/made \
        --config.stages="('sft','buffer')"                             # in each of them
    python benchmarks/start_up.py runs/made --config=configs/tiny.py --checkouts=.,../before

The cold start and the Step-Trace Buffer are those of the named workdir, in each checkout. Every
checkout has its own compilation cache, which a first round fills; the runs of a round follow one
another. One line of JSON for each checkout, with all rounds. The installed packages are the same
for all: only the project is the checkout's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(checkout: Path, cache: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds of a run in a new workdir until it prints the line of its first RL step.

    The run is ended then. Its CPU-seconds are those of all threads, without those of its tools.

    Raises:
        RuntimeError: the run ended before; holds the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "rapo_jax.main", f"--workdir={workdir}", *arguments]
        variables = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(checkout)}
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[rl] 1/"):
                seconds = time.perf_counter() - started
                used = cpu_seconds(process.pid)
                process.terminate()
                process.communicate()
                return {"cpu_s": round(used, 1), "s": round(seconds, 1)}
        status = process.wait()
        errors.seek(0)
        raise RuntimeError(f"{checkout}: status {status}: {errors.read()[-2000:]}")


def cpu_seconds(process: int) -> float:
    """What all threads of a process have used, as Linux counts it."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("made", help="workdir with a cold start and a buffer, in every checkout")
    parser.add_argument("--config", required=True, help="config file, in every checkout")
    parser.add_argument("--checkouts", default=".", help="folders of this project, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="after the one that fills the caches")
    flags, others = parser.parse_known_args()
    arguments = [
        f"--config={flags.config}",
        f"--config.sft.folder={flags.made}/coldstart",
        f"--config.buffer.folder={flags.made}/buffer",
        "--config.stages=('rl',)",
        *others,
    ]
    checkouts = [Path(each).resolve() for each in flags.checkouts.split(",")]
    rounds: dict[Path, list[dict[str, float]]] = {each: [] for each in checkouts}
    with tempfile.TemporaryDirectory() as caches:
        for turn in range(flags.rounds + 1):
            for number, checkout in enumerate(checkouts):
                taken = start(checkout, Path(caches) / str(number), arguments)
                print(f"round {turn} of {checkout}: {taken}", file=sys.stderr, flush=True)
                rounds[checkout].append(taken)
    for checkout, (first, *warm) in rounds.items():
        medians = {key: statistics.median(each[key] for each in warm) for key in first}
        print(json.dumps({"checkout": str(checkout), **medians, "filling": first, "warm": warm}))


if __name__ == "__main__":
    main()
