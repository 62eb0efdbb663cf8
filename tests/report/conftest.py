"""Synthetic but well-formed workdirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028"


def segment(source: str, step: int, text: str, **more: Any) -> dict[str, Any]:
    return {"source": source, "step": step, "text": text, "entropy": None, "z": None,
            "tokens": text.split(), "token_entropy": None} | more  # fmt: skip


def trajectory(step: int, question: str, row: int, *, retrieved: bool) -> dict[str, Any]:
    thought = f"<think>{HOSTILE}</think><search>E1 town</search>"
    segments = [segment("PROMPT", 0, "Where is E1?"),
                segment("POLICY", 0, thought, entropy=0.5, token_entropy=[0.5] * 4),
                segment("TOOL", 0, f"<result>{HOSTILE}</result>")]  # fmt: skip
    if retrieved:
        segments.append(segment("RETRIEVED", 1, "<retrieve>look</retrieve>", z=float("nan")))
    return {"step": step, "stage": "rl", "question_id": question, "question": HOSTILE,
            "answers": ["E2"], "row": row, "hybrid": retrieved, "status": "ANSWERED",
            "reward": 1.0 * (row % 2), "advantage": 0.1, "retrieval_reward": 0.0,
            "segments": segments}  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """A workdir of `steps` RL steps whose reward is its step and whose CPU time is `cpu` a step.

    `rollouts` are the metrics rollout/... of each step, {} for a method without rollouts.
    """

    def write(
        workdir: Path,
        *,
        method: str = "rapo",
        seed: int = 0,
        after: float = 0.7,
        steps: int = 4,
        cpu: float = 1.0,
        rollouts: Mapping[str, float] = MappingProxyType({"tokens": 5.0}),
        rl: Mapping[str, Any] | None = None,
    ) -> Path:
        workdir.mkdir()
        config = {
            "method": method,
            "seed": seed,
            "commit": workdir.name,
            "rollout": {"questions": 2, "group_size": 3},
            "rl": {"steps": steps, "m": 0.05} | dict(rl or {}),
            "sft": {"folder": f"/elsewhere/{workdir.name}"},
            "log": {"trajectories": bool(seed)},
        }
        (workdir / "config.json").write_text(json.dumps(config))
        metrics = [{"step": 0, "stage": "sft", "loss/sft": 2.0, "time/step": 0.1}]
        metrics += [
            {"step": t, "stage": "rl", "reward/mean": float(t), "other/metric": 1.0,
             "heldout/accuracy": 0.5 + 0.01 * t, "heldout/hidden": 0.3, "cpu/total": cpu * t,
             "time/rollout": 0.5, "time/host": 0.2, "time/update": 0.2, "time/step": 1.0,
             **{f"rollout/{name}": x for name, x in rollouts.items()}}
            for t in range(1, steps + 1)
        ]  # fmt: skip
        write_lines(workdir / "metrics.jsonl", metrics)
        kinds = {"one_hop": after, "hidden": after - 0.2, "hidden_number": after - 0.4}
        result = {"method": method, "seed": seed, "questions": 10, "counts": {"traces": 3},
                  "accuracy_before": 0.5, "accuracy_after": after,
                  "accuracy_by_kind_before": dict.fromkeys(kinds, 0.5),
                  "accuracy_by_kind_after": kinds, "seconds": {"rl": 1.5},
                  "cpu_seconds": {"rl": 2 * cpu * steps}}  # fmt: skip
        (workdir / "result.json").write_text(json.dumps(result))
        rows = [trajectory(s, "q1", row, retrieved=row > 2) for s in (2, 4) for row in range(6)]
        write_lines(workdir / "trajectories.jsonl", rows)
        return workdir

    return write


@pytest.fixture
def make_run(write_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """The same, by its name in the folder of the test."""
    return lambda name, **settings: write_run(tmp_path / name, **settings)
