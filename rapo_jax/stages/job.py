"""A run in its workdir: whose it is, which of its stages are left, and its last lines."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapo_jax.config import READERS, STAGES, SUITE_KEYS, Settings
from rapo_jax.io.files import write_json


def open_workdir(workdir: Path, config: dict[str, Any]) -> bool:
    """`prepare_workdir` by the first process; all must be of one config and see its workdir."""
    from rapo_jax.train import distributed

    distributed.check_same(config)
    fresh = distributed.on_first(lambda: prepare_workdir(workdir, config))
    distributed.check_shared(workdir)
    distributed.keep_quiet(workdir)
    return fresh


def prepare_workdir(workdir: Path, config: dict[str, Any]) -> bool:
    """Writes config.json, or refuses a folder that belongs to another config. True if it wrote.

    `stages`, `log`, `checkpoint`, `distributed`, what only READERS read and the keys of the
    suites may differ between calls: they change no result. A call for READERS alone writes nothing.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    free = ("stages", "log", "checkpoint", "distributed", *READERS)
    wanted = json.loads(json.dumps(config))
    if path.is_file():
        found = json.loads(path.read_text())
        found, wanted = _without_suites(found), _without_suites(wanted)
        for key in sorted(set(found) | set(wanted)):
            if key not in free and key != "commit" and found.get(key) != wanted.get(key):
                raise ValueError(
                    f"workdir={str(workdir)!r}: it belongs to a run with another config ({key} was "
                    f"{found.get(key)!r}, is {wanted.get(key)!r}); use a new --workdir"
                )
        return False
    if set(config["stages"]) <= set(READERS):
        return False
    write_json(path, wanted | {"commit": commit()})
    return True


def _without_suites(config: dict[str, Any]) -> dict[str, Any]:
    group = config.get("evaluate", {})
    return config | {"evaluate": {k: x for k, x in group.items() if k not in SUITE_KEYS}}


def commit() -> str:
    """Git commit of this code, '' outside a checkout; '+' marks local changes."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except OSError:
        return ""


def run_stages(settings: Settings, workdir: Path, *, fresh: bool) -> None:
    """Runs the stages that are asked for, in their order; those of READERS open no run."""
    if not set(settings.stages) <= set(READERS):
        run_job(settings, workdir, fresh=fresh)
    if not set(settings.stages).isdisjoint(READERS):
        from rapo_jax.stages.table import READER_RUNNERS

        for name in READER_RUNNERS:
            if name in settings.stages:
                READER_RUNNERS[name](settings, workdir)
    if "plan" in settings.stages:
        from rapo_jax.plan.stage import plan

        plan(settings, workdir)


def run_job(settings: Settings, workdir: Path, *, fresh: bool) -> None:
    """Runs the stages that train, evaluate and report, each once; opens a run for those left."""
    from rapo_jax.train import distributed

    started = time.perf_counter()
    done = distributed.on_first(lambda: finished(workdir))
    asked = [name for name in STAGES if name in settings.stages and name not in READERS]
    for name in asked:
        if name in done and name != "report":
            print(f"[{name}] finished before; skipped", flush=True)
    left = [name for name in asked if name not in (*done, "report")]
    suites = "evaluate" in asked and bool(settings.evaluate.suites)  # their files know what is done
    if left or suites:
        run_open(settings, workdir, left, suites=suites, fresh=fresh)
    if "report" in asked and distributed.is_first():
        from rapo_jax.report.page import write_report

        write_report([workdir], workdir / "report.html")
        note_finished(workdir, "report")
    result = distributed.on_first(lambda: read_json(workdir / "result.json", {}))
    summarise(workdir, result, suites=suites, seconds=time.perf_counter() - started)


def run_open(
    settings: Settings, workdir: Path, left: Sequence[str], *, suites: bool, fresh: bool
) -> None:
    """Runs the stages `left` and the suites on one open run.

    A `fresh` workdir whose run cannot even be opened is not bound to the config that failed.
    """
    from rapo_jax.stages.table import RUNNERS, open_stages
    from rapo_jax.train import distributed

    try:
        stages = open_stages(settings, workdir)
    except BaseException:
        if fresh and distributed.is_first():
            (workdir / "config.json").unlink()
        raise
    try:
        for name in left:
            if name == "evaluate" and settings.suites_alone:
                continue
            RUNNERS[name](stages)
            if distributed.is_first():
                note_finished(workdir, name)
            if distributed.stop_asked():
                raise distributed.Stopped(f"stage {name!r} is finished")
        if suites:
            RUNNERS["suites"](stages)
    finally:
        stages.close()


def finished(workdir: Path) -> list[str]:
    """Stages that need not run again."""
    return read_json(workdir / "done.json", {"stages": []})["stages"]


def note_finished(workdir: Path, stage: str) -> None:
    done = finished(workdir)
    if stage not in done:
        write_json(workdir / "done.json", {"stages": [*done, stage]})


def read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else default


def summarise(workdir: Path, result: dict[str, Any], *, suites: bool, seconds: float) -> None:
    """The last lines of a run: what came of it and where it lies."""
    from rapo_jax.train.metrics import clock

    if "accuracy_after" in result:
        hidden = (
            f"; hidden words {result['hidden_before']:.3f} -> {result['hidden_after']:.3f}"
            if "hidden_before" in result
            else ""
        )
        print(
            f"held-out accuracy, greedy, without retrieval: {result['accuracy_before']:.3f} after "
            f"the cold start -> {result['accuracy_after']:.3f} after {result['method']} "
            f"({result['questions']} questions{hidden})"
        )
    if suites:
        print(f"suites: {workdir / 'suites' / 'table.md'}")
    files = {"result": workdir / "result.json", "report": workdir / "report.html"}
    there = [f"{name}: {path}" for name, path in files.items() if path.is_file()]
    print("; ".join([f"done in {clock(seconds)}", *there]))
