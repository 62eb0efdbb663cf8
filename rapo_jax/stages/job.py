"""Runs stages in a workdir: checks its config, skips finished stages, prints a summary."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

from rapo_jax import distributed
from rapo_jax.config import READERS, STAGES, Settings
from rapo_jax.config.sources import STORED, differences, stored_config
from rapo_jax.io.failures import end_of
from rapo_jax.io.files import Json, claimed, read_json, write_json
from rapo_jax.io.user_code import exit_is_an_error
from rapo_jax.io.watchdog import watched
from rapo_jax.model.hf_config import refuse_contradictions
from rapo_jax.plan.stage import plan
from rapo_jax.report.page import write_report
from rapo_jax.run.metrics import clock
from rapo_jax.stages.table import BEGUN, JOB_STAGES, READER_STAGES, open_job

Config: TypeAlias = Mapping[str, Json]
"""As in config.json."""


@contextmanager
def claimed_workdir(
    settings: Settings,
    config: Config,
    workdir: Path,
    *,
    config_file: str = "",
    checked: Collection[str] | None = (),
) -> Iterator[bool]:
    """Joins the processes and claims `workdir`; yields whether it is fresh, for `run_stages`.

    Inside, a stop signal ends the block. A refused value, a missing file or one that may not be
    read exits with status 2, another failure with 1.

    Args:
        config: the config that `settings` are of.
        config_file: the Python file that it is from, '' if unknown.
        checked: dotted keys that must not contradict the model's folder; None without weights.
    """
    try:
        if checked is not None:
            refuse_contradictions(settings.model, checked)
        distributed.start(settings.distributed)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    try:
        with exit_is_an_error(), ExitStack() as held:
            if not set(settings.stages) <= set(READERS):  # before config.json is written
                distributed.on_first(lambda: _claim(workdir, held))
            yield open_workdir(workdir, config, config_file=config_file)
    except distributed.Stopped as stopped:
        print(f"[stop] {stopped}; run the same command to resume", flush=True)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        remedy, status = end_of(str(error))
        print(f"error: {error}{remedy}", file=sys.stderr)
        distributed.leave(status)
        raise SystemExit(status) from error
    except Exception:
        distributed.leave(1)
        raise


TRAIN = ("sft", "rl")
"""Stages that change the weights, so that an earlier evaluation is outdated."""
HELD_OUT = "held-out"
"""In done.json: the held-out questions of `evaluate` are done, its suites perhaps not."""


def open_workdir(workdir: Path, config: Config, *, config_file: str = "") -> bool:
    """`prepare_workdir` on the first process; all must have one config and one shared workdir."""
    distributed.check_same(config)
    fresh = distributed.on_first(lambda: prepare_workdir(workdir, config, config_file=config_file))
    distributed.check_shared(workdir)
    distributed.keep_quiet(workdir)
    return fresh


def prepare_workdir(workdir: Path, config: Config, *, config_file: str = "") -> bool:
    """Writes config.json, or refuses a folder that belongs to another config. True if it wrote.

    Calls may differ in the keys declared `per_call`, and `rl.steps` may grow. A call for READERS
    alone writes nothing.

    Raises:
        ValueError: the folder belongs to another config, or to one that is lost, or cannot be
        written.
    """
    path = workdir / STORED
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if found := differences(stored_config(path), config):
                raise ValueError(
                    f"workdir={str(workdir)!r}: it belongs to a run with another config "
                    f"({'; '.join(found)}); leave these flags and --config out to continue with "
                    "the run's config, or use a new --workdir"
                )
            return False
        if set(config["stages"]) <= set(READERS):
            return False
        if there := [name for name in BEGUN if (workdir / name).exists()]:
            raise ValueError(
                f"workdir={str(workdir)!r}: its {STORED} is missing, so that nobody knows with "
                f"which config its {' and '.join(there)} were made; restore it from a backup, or "
                "use a new --workdir"
            )
        write_json(path, {**config, "commit": commit(), "config_file": config_file})
        return True


def _claim(workdir: Path, held: ExitStack) -> None:
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        held.enter_context(claimed(workdir, key="workdir"))


@contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    """Turns the failure of a write in `workdir` into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"workdir={str(workdir)!r}: cannot be written ({error.strerror}); name a folder that "
            "you may write"
        ) from None


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
    distributed.on_first(lambda: raise_steps(settings, workdir))
    asked = [name for name in STAGES if name in settings.stages and name not in READERS]
    left, suites = _stages_left(settings, workdir, asked)
    if left or suites:
        with (
            open_job(settings, workdir, left, fresh=fresh) as job,
            watched(settings.watchdog.after_s),
        ):
            for name in left:
                with job.timed(name):
                    JOB_STAGES[name](job)
                if distributed.is_first():
                    held_out_alone = name == "evaluate" and suites
                    note_finished(workdir, HELD_OUT if held_out_alone else name)
                if distributed.stop_asked():
                    raise distributed.Stopped(f"stage {name!r} is finished")
            if suites:
                with job.timed("suites"):
                    JOB_STAGES["suites"](job)
                if distributed.is_first() and not settings.suites_alone:
                    note_finished(workdir, "evaluate")
    if "evaluate" in asked and not suites and distributed.is_first():
        note_finished(workdir, "evaluate")  # also where an earlier call's suites were dropped
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
    if any(name in asked and name not in done for name in TRAIN):
        done = _without_evaluation(done)
    if HELD_OUT in done:
        done = [*done, "evaluate"]
    for name in asked:
        if name in done and name != "report":
            print(f"[{name}] finished before; skipped", flush=True)
    left = [name for name in asked if name not in (*done, "report")]
    if "evaluate" in left and settings.suites_alone:
        left.remove("evaluate")
    return left, "evaluate" in asked and bool(settings.evaluate.suites)


def raise_steps(settings: Settings, workdir: Path) -> None:
    """Records a larger `rl.steps` than that of config.json, whose stages from RL on run again.

    The suites of the weights so far are moved to WORKDIR/suites-STEPS.
    """
    config = read_json(workdir / STORED, default={})
    before, steps = config["rl"]["steps"] if config else settings.rl.steps, settings.rl.steps
    if "rl" not in settings.stages or steps <= before:
        return
    if done := finished(workdir):
        stages = [name for name in _without_evaluation(done) if name != "rl"]
        write_json(workdir / "done.json", {"stages": stages})
    result = read_json(workdir / "result.json", default={})
    if ended := [name for name in result if name.endswith("_after")]:
        left = {name: value for name, value in result.items() if name not in ended}
        write_json(workdir / "result.json", left)
    suites = workdir / "suites"
    if suites.is_dir():
        suites.rename(suites.with_name(f"suites-{before}"))
    write_json(workdir / STORED, config | {"rl": config["rl"] | {"steps": steps}})
    decays = {
        "optimizer.schedule": settings.optimizer.schedule,
        "retrieval.schedule": settings.retrieval.schedule,
    }
    changed = [f"{key}={kind!r}" for key, kind in decays.items() if kind != "constant"]
    note = (
        f"; {' and '.join(changed)} now decay{'s' * (len(changed) == 1)} over {steps} steps, "
        "from the last checkpoint on"
    ) * bool(changed)
    print(f"[config] rl.steps grows from {before} to {steps}{note}", flush=True)


def finished(workdir: Path) -> list[str]:
    """Stages that need not run again."""
    return read_json(workdir / "done.json", default={"stages": []})["stages"]


def note_finished(workdir: Path, stage: str) -> None:
    """Adds a stage to done.json; a training stage removes an earlier evaluation from it."""
    done = finished(workdir)
    if stage not in done:
        whole = [name for name in done if stage != "evaluate" or name != HELD_OUT]
        if stage in TRAIN:
            whole = _without_evaluation(whole)
        write_json(workdir / "done.json", {"stages": [*whole, stage]})


def _without_evaluation(stages: Sequence[str]) -> list[str]:
    return [name for name in stages if name not in (HELD_OUT, "evaluate", "report")]


def summarise(workdir: Path, result: Mapping[str, Json], *, suites: bool, seconds: float) -> None:
    """Prints the last lines of a run: accuracies, and where its files are."""
    if "accuracy_after" in result:
        hidden = (
            f"; hidden words {result['hidden_before']:.3f} -> {result['hidden_after']:.3f}"
            if "hidden_before" in result
            else ""
        )
        print(
            f"held-out accuracy, greedy, without retrieval: {result['accuracy_before']:.3f} "
            f"{result.get('start', 'after the cold start')} -> {result['accuracy_after']:.3f} "
            f"after {result['method']} ({result['questions']} questions{hidden})"
        )
    if suites:
        print(f"suites: {workdir / 'suites' / 'table.md'}")
    files = {"result": workdir / "result.json", "report": workdir / "report.html"}
    there = [f"{name}: {path}" for name, path in files.items() if path.is_file()]
    print("; ".join([f"done in {clock(seconds)}", *there]))
