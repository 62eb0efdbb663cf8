"""The stages of a run, one function each, and what they leave behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rapo_jax.config import Settings
from rapo_jax.io.files import write_json
from rapo_jax.model.describe import describe
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.stages.export import export_weights
from rapo_jax.stages.gates import check_cold_start
from rapo_jax.stages.score import score_file
from rapo_jax.stages.search_index import index_corpus
from rapo_jax.stages.suites import evaluate_suites, open_suites
from rapo_jax.suites.catalogue import Suite
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train.distributed import is_first
from rapo_jax.train.evaluate import evaluate, spread
from rapo_jax.train.policy import load_policy, policy_shapes
from rapo_jax.train.rl import RlStage
from rapo_jax.train.run import Run, open_run
from rapo_jax.train.sft import train_cold_start


class Stages:
    """An open run and the numbers its stages gather for result.json."""

    def __init__(self, run: Run, suites: Sequence[Suite] = ()) -> None:
        self.run, self.suites = run, suites
        path = run.workdir / "result.json"
        self.result: dict[str, Any] = (
            json.loads(path.read_text())
            if path.is_file()
            else {
                "method": run.settings.method,
                "seed": run.settings.seed,
                "counts": {},
                "seconds": {},
                "cpu_seconds": {},
            }
        )

    def write(self) -> None:
        if not is_first():
            return
        write_json(self.run.workdir / "result.json", self.result)

    def close(self) -> None:
        self.run.close()


def open_stages(settings: Settings, workdir: Path) -> Stages:
    """Opens the run, and says what of the model every device will hold (all of it: layout.txt)."""
    suites = open_suites(settings, workdir)
    run = open_run(settings, workdir)
    table, notes = describe(run.mesh, run.model, policy_shapes(run.model))
    if is_first():
        (workdir / "layout.txt").write_text("\n".join([*table, *notes]) + "\n")
    for note in notes:
        print(f"[mesh] {note}", flush=True)
    return Stages(run, suites)


def _timed(name: str, work: Callable[[Stages], None]) -> Callable[[Stages], None]:
    def runner(stages: Stages) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        work(stages)
        spent = stages.result
        spent["seconds"][name] = spent["seconds"].get(name, 0) + time.perf_counter() - started
        spent["cpu_seconds"][name] = spent["cpu_seconds"].get(name, 0) + time.process_time() - cpu
        stages.write()

    return runner


def _sft(stages: Stages) -> None:
    train_cold_start(stages.run)


def _buffer(stages: Stages) -> None:
    manifest = build_buffer(stages.run)
    stages.result["counts"]["traces"] = manifest["traces"]
    stages.result["counts"]["trajectories_kept"] = manifest["trajectories_kept"]


def _rl(stages: Stages) -> None:
    if stages.run.task.scripted:  # without, settings are refused where a gate is set
        stages.result["cold_start"] = check_cold_start(stages.run)
    found = RlStage(stages.run).train()
    stages.result["seconds"] |= {k: v for k, v in found["seconds"].items() if k != "rl"}
    stages.result["cpu_seconds"]["rl_steps"] = found["cpu_seconds"]
    stages.result["counts"]["rl_steps"] = stages.run.settings.rl.steps
    stages.result["counts"]["compiled_rollouts"] = stages.run.sampler.compiled


def _evaluate(stages: Stages) -> None:
    run = stages.run
    questions = spread(load_questions(run.questions["eval"]), run.settings.evaluate.limit)
    compared = [("before", run.cold_start), ("after", run.workdir)]
    if run.model.folder and not (run.workdir / "checkpoints").is_dir():
        compared.pop()  # nothing was trained: the weights of the folder alone
    for when, folder in compared:
        found = evaluate(run, load_policy(run, folder), questions)
        for name in ("accuracy", "accuracy_by_kind", "hidden", "reward", "tokens", "endings"):
            if name in found:
                stages.result[f"{name}_{when}"] = found[name]
        stages.result["questions"] = found["questions"]
        values = {"evaluate/accuracy": found["accuracy"], "evaluate/reward": found["reward"]}
        values |= {f"evaluate/accuracy/{k}": v for k, v in found["accuracy_by_kind"].items()}
        run.metrics.write("evaluate", 0 if when == "before" else run.settings.rl.steps, values)


def _suites(stages: Stages) -> None:
    evaluate_suites(stages.run, stages.suites, stages.result)


RUNNERS = {
    name: _timed(name, work)
    for name, work in (
        ("sft", _sft),
        ("buffer", _buffer),
        ("rl", _rl),
        ("evaluate", _evaluate),
        ("suites", _suites),
    )
}

READER_RUNNERS = {
    "score": score_file,
    "export": export_weights,
    "search_index": index_corpus,
}
"""Those that need no open run: functions of the settings and the workdir."""
