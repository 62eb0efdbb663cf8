"""rapo_jax: trains agents with retrieval-augmented policy optimisation (RAPO, arXiv 2603.03078).

    python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/tiny
    python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/grpo --config.method=grpo
    python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/tiny \\
        --config.stages="('evaluate','report')"
    python -m rapo_jax.main --config=configs/default.py --workdir=runs/score \\
        --config.stages="('score',)" --config.model.folder=FOLDER \\
        --config.score.input=tokens.jsonl --config.score.output=logp.jsonl

Stages, in order; a finished one is skipped, a killed one goes on where its last checkpoint was:
    sft       cold start: imitate scripted demonstrations          -> WORKDIR/coldstart
    buffer    fill the Step-Trace Buffer with an off-policy agent  -> WORKDIR/buffer
    rl        hybrid-policy rollouts and RAPO updates              -> WORKDIR/checkpoints
    evaluate  held-out questions, greedy, without retrieval        -> WORKDIR/result.json
              published sets: --config.evaluate.suites="('gsm8k','hotpotqa')" -> WORKDIR/suites
    report    curves, comparison and trajectories                  -> WORKDIR/report.html
On demand, with the weights of WORKDIR's newest checkpoint or else of config.model.folder:
    score     log-probs and entropies of given tokens              -> config.score.output
    export    a Hugging Face folder                                -> config.export.folder
    plan      needs no weights: what the run would need of chips that are not at hand
    search_index  a corpus of passages as an index on disk         -> config.search_index.folder

config.model.folder names a Hugging Face folder (Qwen2/2.5, Qwen3, Llama 3) to start from.
Every key of the config can be set as --config.GROUP.KEY=VALUE; configs/default.py lists them all
with their unit and paper section. Keys most often set: config.seed, config.method (rapo, grpo,
sft), config.rl.steps, config.rl.m, config.rl.a, config.rollout.n_hybrid,
config.retrieval.probability, config.retrieval.noise, config.retrieval.schedule.

Several hosts: the same command on each, on one --workdir that all of them see; by SLURM or on a
TPU pod with --config.distributed.mode=auto, elsewhere with
    --config.distributed.mode=explicit --config.distributed.coordinator=HOST:PORT
    --config.distributed.processes=N --config.distributed.process=0 (to N - 1)
SIGTERM to any of them saves a checkpoint on all and ends them with status 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from rapo_jax.checks import READERS, STAGES, SUITE_KEYS, read_settings
from rapo_jax.config import Settings
from rapo_jax.host.files import write_json
from rapo_jax.model.hf_config import refuse_contradictions

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of everything this run writes.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument: {argv[1]}")
    if CONFIG.value is None or WORKDIR.value is None:
        raise app.UsageError("--config and --workdir are needed; see --help")
    if logging.get_verbosity() == logging.INFO:  # absl's own choice: a line for every file touched
        logging.set_verbosity(logging.WARNING)
    try:
        settings = read_settings(CONFIG.value.to_dict())
        no_weights = {"plan", "search_index"}  # know a published model by its name, or need none
        if not set(settings.stages) <= no_weights:
            refuse_contradictions(
                settings.model, config_flags.get_override_values(flags.FLAGS["config"])
            )
    except (ValueError, FileNotFoundError) as error:
        refuse(error)
    # Own code may lie beside the config file; last, so that it hides no installed module.
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    sys.path.append(str(Path(config_file).resolve().parent))
    from rapo_jax.train import distributed

    try:
        distributed.start(settings.distributed)
    except ValueError as error:
        refuse(error)
    try:
        fresh = open_workdir(Path(WORKDIR.value), CONFIG.value.to_dict())
        run_stages(settings, Path(WORKDIR.value), fresh=fresh)
    except distributed.Stopped as stopped:
        print(f"[stop] {stopped}; the same command goes on", flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.leave(2)
        raise SystemExit(2) from error
    except Exception:
        distributed.leave(1)
        raise


def refuse(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error


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
        from rapo_jax.train.stages import READER_RUNNERS

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
    from rapo_jax.train import distributed
    from rapo_jax.train.stages import RUNNERS, open_stages

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
    report = workdir / "report.html"
    where = f"; report: {report}" if report.is_file() else ""
    print(f"done in {clock(seconds)}; result: {workdir / 'result.json'}{where}")


def entry() -> None:
    """The console script."""
    import os

    cache = str(Path.home() / ".cache" / "rapo_jax" / "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.path.insert(0, os.getcwd())  # config files import their base as configs.default
    app.run(main)


if __name__ == "__main__":
    entry()
