"""Metrics to `metrics.jsonl`, samples to `samples.jsonl`, both to dashboards; progress lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rapo_jax.distributed import is_first
from rapo_jax.io.jsonl import append_lines
from rapo_jax.run.dashboards import ShownSample, TensorBoard, WandB


class Metrics:
    """Writes one JSON object for each step, `{'step', 'stage', 'group/name': number}`.

    After a resume the steps since the checkpoint are written again; see `cut_back`. Of several
    processes the first one alone writes.
    """

    def __init__(self, workdir: Path, *, tensorboard: bool, wandb: str = "") -> None:
        """`wandb` is a project of Weights & Biases, "" for none.

        Raises:
            ValueError: Weights & Biases cannot be used; names the remedy.
        """
        self._path, self._samples = workdir / "metrics.jsonl", workdir / "samples.jsonl"
        self._dashboards: list[TensorBoard | WandB] = []
        if tensorboard and is_first():
            self._dashboards.append(TensorBoard(workdir))
        if wandb and is_first():
            self._dashboards.append(WandB(workdir, wandb))

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if not is_first():
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        append_lines(self._path, json.dumps({"step": step, "stage": stage, **finite}) + "\n")
        for dashboard in self._dashboards:
            dashboard.write(stage, step, numbers)

    def write_samples(self, step: int, samples: Sequence[ShownSample]) -> None:
        """Writes held-out questions with the responses of a step of RL."""
        if not is_first():
            return
        lines = [json.dumps({"step": step, "stage": "heldout", **sample}) for sample in samples]
        append_lines(self._samples, "".join(f"{line}\n" for line in lines))
        for dashboard in self._dashboards:
            dashboard.write_samples(step, samples)

    def cut_back(self, stage: str, step: int) -> None:
        """Removes what was written of `stage` from `step` on, which a resumed run writes again."""
        if not is_first():
            return
        cut_back(self._path, stage, step)
        if stage == "rl":
            cut_back(self._samples, "heldout", step)
        for dashboard in self._dashboards:
            dashboard.cut_back(stage, step)

    def close(self) -> None:
        for dashboard in self._dashboards:
            dashboard.close()


def cut_back(path: Path, stage: str, step: int) -> None:
    """Removes from a file of JSON lines those of `stage` from `step` on, and unreadable ones."""
    if not path.is_file():
        return
    draft = path.with_name(path.name + ".tmp")
    with path.open("rb") as written, draft.open("wb") as kept:
        for line in written:
            try:
                row = json.loads(line)
                later = row["stage"] == stage and row["step"] >= step
            except (ValueError, KeyError, TypeError):  # cut short by a kill
                continue
            if not later:
                kept.write(line)
    draft.replace(path)


class Progress:
    """Prints a line at most every `every_s` seconds: steps done, some values, time left."""

    def __init__(self, name: str, *, total: int, done: int, every_s: float = 10.0) -> None:
        self._name, self._total, self._first = name, total, done
        self._started = time.perf_counter()
        self._last, self._every_s = -math.inf, every_s

    def show(self, done: int, **values: object) -> None:
        now = time.perf_counter()
        if now - self._last < self._every_s and done < self._total:
            return
        self._last = now
        spent = now - self._started
        rate = spent / max(done - self._first, 1)
        left = rate * (self._total - done)
        shown = "  ".join(
            f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
        )
        print(f"[{self._name}] {done}/{self._total}  {shown}  ETA {clock(left)}", flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
