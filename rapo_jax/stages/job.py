"""A run in its workdir: to which config it belongs, which stages are left, and its last lines."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from rapo_jax.config import READERS, STAGES, SUITE_KEYS, Settings
from rapo_jax.io.files import Json, read_json, write_json
from rapo_jax.plan.stage import plan
from rapo_jax.report.page import write_report
from rapo_jax.stages.table import JOB_STAGES, READER_STAGES, open_job
from rapo_jax.train import distributed
from rapo_jax.train.metrics import clock

Config: TypeAlias = Mapping[str, Json]
"""As in config.json."""


def open_workdir(workdir: Path, config: Config) -> bool:
    """`prepare_workdir` on the first process; all must have one config and one shared workdir."""
    distributed.check_same(config)
    fresh = distributed.on_first(lambda: prepare_workdir(workdir, config))
    distributed.check_shared(workdir)
    distributed.keep_quiet(workdir)
    return fresh


def prepare_workdir(workdir: Path, config: Config) -> bool:
    """Writes config.json, or refuses a folder that belongs to another config. True if it wrote.

    `stages`, `log`, `checkpoint`, `distributed`, the groups of READERS and the keys of suites may
    differ between calls: they change no result. A call for READERS alone writes nothing.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    free = ("stages", "log", "checkpoint", "distributed", "commit", *READERS)
    new = json.loads(json.dumps(config))
    if path.is_file():
        old, new = _without_suites(read_json(path)), _without_suites(new)
        for key in sorted((old.keys() | new.keys()).difference(free)):
            if old.get(key) != new.get(key):
                raise ValueError(
                    f"workdir={str(workdir)!r}: it belongs to a run with another config ({key} was "
                    f"{old.get(key)!r}, is {new.get(key)!r}); use a new --workdir"
                )
        return False
    if set(config["stages"]) <= set(READERS):
        return False
    write_json(path, new | {"commit": commit()})
    return True


def _without_suites(config: Config) -> dict[str, Json]:
    group = config.get("evaluate", {})
    return {**config, "evaluate": {k: x for k, x in group.items() if k not in SUITE_KEYS}}


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
    """Runs the stages of `config.stages` in their order, each that trains or evaluates once.

    `fresh`: `prepare_workdir` wrote config.json for this call.

    Raises:
        Stopped: a signal asked for it; the same command resumes.
    """
    started = time.perf_counter()
    asked = [name for name in STAGES if name in settings.stages and name not in READERS]
    left, suites = _stages_left(settings, workdir, asked)
    if left or suites:
        with open_job(settings, workdir, left, fresh=fresh) as job:
            for name in left:
                with job.timed(name):
                    JOB_STAGES[name](job)
                if distributed.is_first():
                    note_finished(workdir, name)
                if distributed.stop_asked():
                    raise distributed.Stopped(f"stage {name!r} is finished")
            if suites:
                with job.timed("suites"):
                    JOB_STAGES["suites"](job)
    if "report" in asked and distributed.is_first():
        write_report([workdir], workdir / "report.html")
        note_finished(workdir, "report")
    if asked:
        result = distributed.on_first(lambda: read_json(workdir / "result.json", default={}))
        summarise(workdir, result, suites=suites, seconds=time.perf_counter() - started)
    for name, read in READER_STAGES.items():
        if name in settings.stages:
            read(settings, workdir)
    if "plan" in settings.stages:
        plan(settings, workdir)


def _stages_left(settings: Settings, workdir: Path, asked: list[str]) -> tuple[list[str], bool]:
    """The stages that need an open run and are not finished, and whether there are suites.

    Suites are always run: their files show what is done.
    """
    if not asked:
        return [], False
    done = distributed.on_first(lambda: finished(workdir))
    for name in asked:
        if name in done and name != "report":
            print(f"[{name}] finished before; skipped", flush=True)
    left = [name for name in asked if name not in (*done, "report")]
    if "evaluate" in left and settings.suites_alone:
        left.remove("evaluate")
    return left, "evaluate" in asked and bool(settings.evaluate.suites)


def finished(workdir: Path) -> list[str]:
    """Stages that need not run again."""
    return read_json(workdir / "done.json", default={"stages": []})["stages"]


def note_finished(workdir: Path, stage: str) -> None:
    done = finished(workdir)
    if stage not in done:
        write_json(workdir / "done.json", {"stages": [*done, stage]})


def summarise(workdir: Path, result: Mapping[str, Json], *, suites: bool, seconds: float) -> None:
    """Prints the last lines of a run: accuracies, and where its files are."""
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
