"""Runs of the smallest config, also on a disk that fails: started, awaited, compared."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rapo_jax.run.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "sft.steps": 40, "sft.checkpoint_every": 10, "checkpoint.every": 1, "rl.steps": 6,
    "task.reward": "benchmarks.faults:reward", "rollout.driver": "host",
}  # fmt: skip
PATIENCE_S = 600.0
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


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
    traces = (f"buffer/traces/{name}" for name in ("items.jsonl", "keys.npy", "manifest.json"))
    for name in ("trajectories.jsonl", "buffer/trajectories.jsonl", *traces):
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


def build_failing_disk(folder: Path) -> Path:
    """Compiles the library that makes writes fail."""
    library, source = folder / "failing_disk.so", ROOT / "benchmarks" / "failing_disk.c"
    compiler = ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run(compiler, check=True)
    return library


def failing(
    library: Path,
    below: Path,
    *,
    first: int = 0,
    code: int = errno.ENOSPC,
    count: Path | None = None,
) -> dict[str, str]:
    """The environment of a process whose writes below a folder fail, or are counted."""
    counted = {"FAILING_DISK_COUNT": str(count)} if count else {}
    return counted | {
        "LD_PRELOAD": str(library),
        "FAILING_DISK_FOLDER": f"{below.resolve()}/",
        "FAILING_DISK_FROM": str(first),
        "FAILING_DISK_ERRNO": str(code),
    }
