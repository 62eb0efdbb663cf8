"""Runs all combinations of the given settings and compares them in one report.

    python launch/sweep.py --config=configs/tiny.py --workdir=runs/sweep \\
        --sweep method=grpo,rapo --sweep seed=0,1,2
    python launch/sweep.py --config=configs/tiny.py --workdir=runs/ablation \\
        --sweep seed=0,1,2,3,4 --run method=grpo --run method=rapo \\
        --run method=rapo,retrieval.noise=1.0 --run method=rapo,rl.m=0,rl.a=0 \\
        --run method=rapo,retrieval.schedule=linear

Each --run is a variant, combined with the values of every --sweep. Flags --config.KEY=VALUE are
passed to all runs. Lists of values and of settings are split at commas outside brackets and quotes:
stages=('rl','evaluate') is one setting.

The cold start and the Step-Trace Buffer are made once, in WORKDIR/shared, for all runs. A run that
changes a key of sft, model, tokenizer or task makes a separate cold start, one that changes a key
of buffer, tokenizer or task a separate buffer. Finished runs are skipped, so the same command
continues after an interruption, and seeds or variants can be added later.

WORKDIR/report.html, summary.md, summary.json and heldout.svg compare the runs. The exit status is
1 if a run failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from jobs import ROOT, Job, run_jobs, say

PROGRAM = ("-m", "rapo_jax.main")
COLD_START_KEYS = ("sft", "model", "tokenizer", "task")
BUFFER_KEYS = (
    *("buffer", "tokenizer", "task"),
    *(f"retrieval.{key}" for key in ("unit", "mask", "max_chars", "encoder", "width")),
)
"""Keys, or groups of keys, on which the cold start and the buffer depend."""


def split(text: str) -> list[str]:
    """The parts of `text` between commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def setting(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as a pair."""
    key, equals, value = text.partition("=")
    key = key.strip().removeprefix("--").removeprefix("config.")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        raise ValueError(f"{text!r} is not KEY=VALUE, such as rl.m=0.1")
    return key, value.strip()


def plan(workdir: Path, sweeps: Sequence[str], variants: Sequence[str]) -> list[Job]:
    """Every combination of a variant (slowest) with one value of each swept key."""
    axes = [(key, split(values)) for key, values in map(setting, sweeps)]
    explicit = [dict(map(setting, split(variant))) for variant in variants] or [{}]
    swept = [key for key, _ in axes]
    for key in swept:
        if swept.count(key) > 1 or any(key in variant for variant in explicit):
            raise ValueError(f"{key} is given twice: name each key in one --sweep or in --run")
    jobs: dict[str, Job] = {}
    for variant in explicit:
        for values in itertools.product(*(values for _, values in axes)):
            settings = variant | dict(zip(swept, values, strict=True))
            name = name_of(settings)
            if name in jobs or name == "shared":
                raise ValueError(f"two runs would be called {name!r}; remove the repeated value")
            jobs[name] = Job(name, workdir / name, settings, stages_of(settings))
    return list(jobs.values())


def name_of(settings: dict[str, str]) -> str:
    """A folder's name: the method, then the other settings, then the seed."""
    order = sorted(settings, key=lambda key: (key != "method", key == "seed"))
    parts = [settings[key] if key == "method" else f"{key}={settings[key]}" for key in order]
    return re.sub(r"[^\w.=+-]+", "-", "_".join(parts)) or "run"


def shared_job(workdir: Path) -> Job:
    """The run that makes the shared cold start and buffer, with the seed of the config."""
    return Job("shared", workdir / "shared", {}, ("sft", "buffer"))


def stages_of(settings: dict[str, str]) -> tuple[str, ...]:
    """The stages of a run; cold start and buffer only if it cannot use the shared ones."""
    if "stages" in settings:
        return tuple(re.findall(r"\w+", settings["stages"]))
    sft = ["sft"] * _changes(settings, COLD_START_KEYS)
    buffer = ["buffer"] * _changes(settings, BUFFER_KEYS)
    return (*sft, *buffer, "rl", "evaluate", "report")


def _changes(settings: dict[str, str], groups: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{group}.") for key in settings for group in groups)


def command(job: Job, config: str, passed: Sequence[str], program: Sequence[str]) -> list[str]:
    """The command line of a run; the run's settings come last and override the others."""
    settings = {"stages": str(job.stages)}
    shared = job.workdir.parent / "shared"
    if job.workdir != shared:
        if not _changes(job.settings, COLD_START_KEYS):
            settings["sft.folder"] = str(shared / "coldstart")
        if not _changes(job.settings, BUFFER_KEYS):
            settings["buffer.folder"] = str(shared / "buffer")
    given = {setting(flag)[0] for flag in passed}
    settings = {key: value for key, value in settings.items() if key not in given} | job.settings
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    where = [f"--config={config}", f"--workdir={job.workdir}"]
    return [sys.executable, *program, *where, *passed, *flags]


def main(arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Runs the sweep of these flags; returns the exit status."""
    flags, passed, jobs = _read(arguments)
    folder: Path = flags.workdir.resolve()
    shared = shared_job(folder)

    def line_of(job: Job) -> list[str]:
        return command(job, flags.config, passed, program)

    if flags.dry_run:
        for job in (shared, *jobs):
            print(("# finished: " if job.finished else "") + shlex.join(line_of(job)))
        return 0
    _check_same_flags(folder, {"config": flags.config, "flags": passed})
    failed: list[Job] = []
    if not shared.finished:
        say("making the cold start and the buffer for all runs")
        failed = run_jobs([shared], line_of, 1)
    todo = [] if failed else [job for job in jobs if not job.finished]
    if skipped := len(jobs) - len(todo) if not failed else 0:
        say(f"{skipped} of {len(jobs)} runs are finished already")
    failed += run_jobs(todo, line_of, flags.jobs)
    _compare([job.workdir for job in jobs if job.workdir.exists()], folder, flags.baseline)
    for job in failed:
        say(f"FAILED: {job.name}; the last lines of its output ({job.log}):")
        lines = job.log.read_text(errors="replace").splitlines()
        say("\n".join(f"    {line[:200]}" for line in lines[-5:]))
    return 1 if failed else 0


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[Job]]:
    parser = argparse.ArgumentParser(
        prog="python launch/sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="config file of all runs")
    add("--workdir", required=True, type=Path, help="folder of the sweep")
    add("--sweep", action="append", default=[], metavar="KEY=VALUE,VALUE…", help="repeat for more")
    add("--run", action="append", default=[], metavar="KEY=VALUE,KEY=VALUE…", help="one variant")
    add("--jobs", type=int, default=1, help="runs at the same time")
    add("--baseline", default="grpo", help="variant to compare the others with")
    add("--dry-run", action="store_true", help="print the commands and stop")
    flags, passed = parser.parse_known_args(arguments)
    for flag in passed:
        if not re.match(r"--config\.[\w.]+=", flag):
            parser.error(f"unknown flag {flag!r}; keys of the config are --config.KEY=VALUE")
    if flags.jobs < 1:
        parser.error(f"--jobs={flags.jobs}: at least one run at a time")
    try:
        jobs = plan(flags.workdir.resolve(), flags.sweep, flags.run)
        for key in {setting(flag)[0] for flag in passed}:
            if any(key in job.settings for job in jobs):
                raise ValueError(f"{key} is given twice: as --config.{key} and in --sweep or --run")
    except ValueError as error:
        parser.error(str(error))
    return flags, passed, jobs


def _check_same_flags(folder: Path, flags: dict[str, object]) -> None:
    """Writes the flags of all runs; refuses others than before, which would make runs unequal."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    if path.exists() and (before := json.loads(path.read_text())) != flags:
        raise SystemExit(f"{folder} was started with {before}, not {flags}: use another --workdir")
    path.write_text(json.dumps(flags) + "\n")


def _compare(workdirs: Sequence[Path], folder: Path, baseline: str) -> None:
    from rapo_jax.report.figure import write_figure
    from rapo_jax.report.page import write_report
    from rapo_jax.report.summary import write_summary

    if not workdirs:
        return
    say("\n" + write_summary(workdirs, folder, baseline=baseline))
    write_figure(workdirs, folder / "heldout.svg")
    say(f"report: {write_report(workdirs, folder / 'report.html', baseline=baseline)}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    venv_python = ROOT / ".venv" / "bin" / "python"
    if importlib.util.find_spec("matplotlib") is None and venv_python.exists():
        os.execv(venv_python, [str(venv_python), *sys.argv])
    sys.path.insert(0, str(ROOT))
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted: the same command continues the sweep", file=sys.stderr)
        sys.exit(130)
