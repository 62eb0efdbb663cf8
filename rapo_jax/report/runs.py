"""Reads the workdir of a run: settings, metrics, final accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rapo_jax.io.files import read_object
from rapo_jax.io.jsonl import JsonObject, as_number, parse_line


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run's workdir; `notes` name whatever is missing."""

    workdir: Path
    config: JsonObject = field(default_factory=dict)
    metrics: Mapping[str, list[JsonObject]] = field(default_factory=dict)
    """Rows of metrics.jsonl by stage, in the order of their steps."""
    result: JsonObject = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def holds_anything(self) -> bool:
        return bool(self.config or self.metrics or self.result)

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed", self.result.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def method(self) -> str:
        return str(self.config.get("method") or self.result.get("method") or self.workdir.name)


def load_run(workdir: Path) -> RunFiles:
    """Reads config.json, metrics.jsonl and result.json of a workdir; never fails on their content.

    The last row of a step counts (a resumed run writes some steps again), and a last line that a
    kill cut short is left out.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        return RunFiles(workdir, notes=(f"{workdir.name}: there is no such folder ({workdir})",))
    notes: list[str] = []
    config = _read_object(workdir / "config.json", notes, "its settings are unknown")
    result = _read_object(workdir / "result.json", notes, "the run has no final evaluation yet")
    result = _of_the_end(result, config, notes)
    rows: dict[tuple[str, float], JsonObject] = {}
    for row in read_lines(workdir / "metrics.jsonl", notes):
        step = as_number(row.get("step"))
        if step is not None:
            rows[str(row.get("stage", "rl")), step] = row
    metrics: dict[str, list[JsonObject]] = {}
    for stage, step in sorted(rows):
        metrics.setdefault(stage, []).append(rows[stage, step])
    if not metrics:
        notes.append("metrics.jsonl holds no step: there are no curves")
    return RunFiles(workdir, config, metrics, result, tuple(f"{workdir.name}: {x}" for x in notes))


def _read_object(path: Path, notes: list[str], consequence: str) -> JsonObject:
    try:
        return read_object(path)
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: {consequence}")
    except (OSError, ValueError) as error:
        why = str(error).removeprefix(f"{path}: ")
        notes.append(f"{path.name} cannot be read ({why}): {consequence}")
    return {}


def _of_the_end(result: JsonObject, config: JsonObject, notes: list[str]) -> JsonObject:
    """The result without an evaluation of weights before the last step of RL."""
    rl = config.get("rl")
    steps = as_number(rl.get("steps")) if isinstance(rl, Mapping) else None
    evaluated = as_number(result.get("steps_after"))
    if steps is None or evaluated is None or evaluated >= steps:
        return result
    notes.append(
        f"result.json is of {evaluated:g} of {steps:g} steps: its accuracies do not count as final"
    )
    return {name: value for name, value in result.items() if not name.endswith("_after")}


def read_lines(path: Path, notes: list[str]) -> list[JsonObject]:
    """All readable objects of a JSON-lines file; `notes` gets what was left out."""
    if not path.is_file():
        notes.append(f"{path.name} is missing")
        return []
    rows, broken = [], []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            row = parse_line(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                broken.append(number)
    if broken:
        places = ", ".join(map(str, broken[:5])) + (" …" if len(broken) > 5 else "")
        notes.append(f"{path.name}: {len(broken)} unreadable line(s) left out ({places})")
    return rows


def accuracy(run: RunFiles, when: str = "after") -> float | None:
    """Held-out accuracy `before` or `after` RL, without retrieval."""
    return as_number(run.result.get(f"accuracy_{when}"))


def accuracy_by_kind(run: RunFiles, when: str = "after") -> dict[str, float]:
    """Held-out accuracy by question type."""
    kinds = run.result.get(f"accuracy_by_kind_{when}")
    pairs = kinds.items() if isinstance(kinds, Mapping) else ()
    return {str(k): number for k, v in pairs if (number := as_number(v)) is not None}


def hidden_accuracy(run: RunFiles, when: str = "after") -> float | None:
    """Held-out accuracy on hidden words; where the run has none, the mean of their types."""
    if (accuracy := as_number(run.result.get(f"hidden_{when}"))) is not None:
        return accuracy
    values = [value for kind, value in accuracy_by_kind(run, when).items() if "hidden" in kind]
    return float(np.mean(values)) if values else None


def series(run: RunFiles, key: str, stage: str = "rl") -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, where it is finite."""
    rows = run.metrics.get(stage, [])
    points = [(row["step"], y) for row in rows if (y := as_number(row.get(key))) is not None]
    step, value = np.asarray(points, float).reshape(-1, 2).T
    return step, value
