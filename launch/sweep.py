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

What the runs have in common, by the config's `stages`, is made once in WORKDIR/shared: a cold
start, a Step-Trace Buffer, both or neither. Runs that change values on which one of them depends
share another, in WORKDIR/shared_KEY=VALUE, but for rollout.retrieved_tokens: a variant with room
for longer traces begins at the same cold start. With --per-seed=buffer, or both, each seed makes
its own, in WORKDIR/shared_seed=SEED, for all its runs: what differs between seeds is then no
property of one buffer. Every run's config is checked before anything starts; --dry-run checks them
and prints the commands. Finished runs are skipped, so the same command continues after an
interruption, and seeds or variants can be added later.

WORKDIR/report.html, summary.md, summary.json and heldout.svg compare the runs. The exit status is
1 if a run failed, 2 if a config is not valid.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from jobs import GRACE_S, ROOT, Job, environment, gpus, run_jobs, say, use_environment
from parts import PARTS, PER_SEED, PER_SEED_HELP, Config, make_jobs
from variants import plan, setting

PROGRAM = ("-m", "rapo_jax.main")
JOBS_HELP = "runs at the same time, on CPUs: on GPUs each run takes all of them"
GRACE_HELP = (
    "time for runs to finish a step and save a checkpoint when the sweep is ended, before they are "
    "killed (default %(default).0f)"
)


def command(job: Job, config: str, passed: Sequence[str], program: Sequence[str]) -> list[str]:
    """The command line of a run; its settings replace the flags for all runs."""
    settings = job.settings | {"stages": job.settings.get("stages", str(job.stages))}
    common = [flag for flag in passed if setting(flag)[0] not in settings]
    where = [f"--config={config}", f"--workdir={job.workdir}"]
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return [sys.executable, *program, *where, *common, *flags]


def read_configs(
    config: str, passed: Sequence[str], runs: Mapping[str, dict[str, str]]
) -> tuple[Config, list[Config]]:
    """The config of the flags for all runs, and that of each run, all checked.

    Raises:
        SystemExit: with status 2, after a line for each run whose config is invalid, or one line
            where the flags for all runs are the reason.
    """
    common = [setting(flag) for flag in passed]
    flags = [common, *([*common, *run.items()] for run in runs.values())]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "read_configs.py")],
        input=json.dumps([config, flags]),
        env=environment() | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.returncode)
    (base, wrong_base), *read = json.loads(done.stdout)
    if base is None or (wrong_base and read and all(error == wrong_base for _, error in read)):
        refuse(wrong_base)
    wrong = [(name, error) for name, (_, error) in zip(runs, read, strict=True) if error]
    for name, error in wrong:
        print(f"error: run {name}: {error}", file=sys.stderr)
    if wrong:
        raise SystemExit(2)
    return base, [each for each, _ in read]


def refuse(reason: object) -> NoReturn:
    """Ends the script with a line that says which flag is wrong, and status 2."""
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def check_passed(passed: Iterable[str]) -> None:
    """Refuses flags that are no --config.KEY=VALUE."""
    for flag in passed:
        if not re.match(r"--config\.[\w.]+=", flag):
            refuse(f"unknown flag {flag!r}; keys of the config are --config.KEY=VALUE")


class Sweep(NamedTuple):
    """A sweep whose flags and configs have been checked."""

    flags: argparse.Namespace
    passed: list[str]
    """Flags for all runs."""
    common: Config
    """The config of these flags."""
    folder: Path
    makers: list[Job]
    """They make what runs share."""
    jobs: list[Job]


def read_sweep(arguments: Sequence[str]) -> Sweep:
    """The sweep of these flags; nothing is written.

    Raises:
        SystemExit: with status 2, for a wrong flag or config.
    """
    flags, passed, runs = _read(arguments)
    folder: Path = flags.workdir.resolve()
    common, configs = read_configs(flags.config, passed, runs)
    per_seed = PER_SEED[flags.per_seed]
    for part in PARTS:
        if part.stage in per_seed and (named := common[f"{part.stage}.folder"]):
            refuse(f"--per-seed={flags.per_seed}: {part.stage}.folder={named} is one for all seeds")
    for (name, settings), config in zip(runs.items(), configs, strict=True):
        for part in PARTS:
            key = f"{part.stage}.folder"
            changed = part.settings_in(settings, config, common)
            if common[key] and changed:
                refuse(
                    f"run {name}: {key}={common[key]} is the same for all runs, so that "
                    f"{', '.join(changed)} would change nothing; leave {key} out"
                )
    if flags.baseline:
        check_baseline(flags.baseline, configs)
    return Sweep(flags, passed, common, folder, *make_jobs(folder, runs, common, configs, per_seed))


def check_baseline(name: str, configs: Sequence[Config]) -> None:
    """Refuses the name of a variant that the table of these runs will not have."""
    from rapo_jax.config.sources import nested
    from rapo_jax.report.compare import group_runs
    from rapo_jax.report.runs import RunFiles

    there = group_runs([RunFiles(Path(), nested(config)) for config in configs])
    if name not in there:
        named = ", ".join(map(repr, there))
        refuse(f"--baseline={name}: no variant of this sweep is called that; give one of {named}")


def main(arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Runs the sweep of these flags; returns the exit status."""
    return run_sweep(read_sweep(arguments), program)


def run_sweep(sweep: Sweep, program: Sequence[str]) -> int:
    """Runs what is not finished of a sweep and compares its runs; returns the exit status."""
    flags, passed, common, folder, makers, jobs = sweep

    def line_of(job: Job) -> list[str]:
        return command(job, flags.config, passed, program)

    if flags.dry_run:
        for job in [*makers, *jobs]:
            print(("# finished: " if job.finished else "") + shlex.join(line_of(job)))
        return 0
    check_same_config(folder, common, flags.config, passed, flags.per_seed)
    failed: list[Job] = []
    for first in (True, False):  # a buffer may need a cold start's tokenizer
        some = [
            job for job in makers if (PARTS[0].stage in job.stages) == first and not job.finished
        ]
        if some and not failed:
            made = [f"{' and '.join(job.stages)} in {job.name}" for job in some]
            say(f"making what runs share: {', '.join(made)}")
            failed = run_jobs(some, line_of, min(flags.jobs, len(some)), flags.grace)
    todo = [] if failed else [job for job in jobs if not job.finished]
    if skipped := len(jobs) - len(todo) if not failed else 0:
        say(f"{skipped} of {len(jobs)} runs are finished already")
    failed += run_jobs(todo, line_of, flags.jobs, flags.grace)
    workdirs = [job.workdir for job in jobs if job.workdir.exists()]
    _compare(workdirs, folder, flags.baseline or "grpo")
    for job in failed:
        say(f"FAILED: {job.name}; the last lines of its output ({job.log}):")
        lines = job.log.read_text(errors="replace").splitlines()
        say("\n".join(f"    {line[:200]}" for line in lines[-5:]))
    return 1 if failed else 0


def _read(
    arguments: Sequence[str],
) -> tuple[argparse.Namespace, list[str], dict[str, dict[str, str]]]:
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
    add("--per-seed", choices=[*PER_SEED], default="nothing", help=PER_SEED_HELP)
    add("--jobs", type=int, default=1, help=JOBS_HELP)
    add("--grace", type=float, default=GRACE_S, metavar="SECONDS", help=GRACE_HELP)
    add("--baseline", help="variant to compare with, as the table names it; grpo unless given")
    add("--dry-run", action="store_true", help="check the configs, print the commands and stop")
    flags, passed = parser.parse_known_args(arguments)
    check_passed(passed)
    if flags.jobs < 1:
        refuse(f"--jobs={flags.jobs}: at least one run at a time")
    if not 0 <= flags.grace < math.inf:
        refuse(f"--grace={flags.grace}: give seconds, 0 or more")
    if flags.jobs > 1 and (count := gpus()):
        refuse(
            f"--jobs={flags.jobs}: every run takes all GPUs of this machine ({count}); leave the "
            "flag out, so that they run one after another, or compute on CPUs: JAX_PLATFORMS=cpu"
        )
    try:
        runs = plan(flags.sweep, flags.run)
        for key in {setting(flag)[0] for flag in passed}:
            if any(key in run for run in runs.values()):
                raise ValueError(f"{key} is given twice: as --config.{key} and in --sweep or --run")
    except ValueError as error:
        refuse(error)
    return flags, passed, runs


def check_same_config(
    folder: Path, common: Config, config: str, passed: list[str], per_seed: str
) -> None:
    """Writes flags and config of all runs; refuses others than before: runs would be unequal."""
    from rapo_jax.config.sources import differences
    from rapo_jax.io.files import read_json, write_text

    path, now = folder / "sweep.json", {"config": config, "flags": passed, "per_seed": per_seed}
    try:
        before = read_json(path)
    except ValueError as error:
        refuse(error)
    if before is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now | {"values": common}) + "\n")
        return

    def what(file: dict[str, Any]) -> tuple[object, ...]:
        per_seed = file.get("per_seed", "nothing")  # not in files of older versions
        name = None if "values" in before else file["config"]  # one file has many paths
        return name, dict(map(setting, file["flags"])), per_seed

    if what(before) != what(now):
        started = {key: before.get(key) for key in now}
        refuse(f"{folder} was started with {started}, not {now}: use another --workdir")
    if changed := differences(before.get("values", common), common):  # not in older files
        refuse(
            f"{folder} was started with other values in {config}: {'; '.join(changed)}; set them "
            "back, or use another --workdir"
        )


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


def main_of(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a script's `main`: SIGTERM and SIGHUP end it, and its runs, as an interrupt does."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    use_environment()
    main_of(main)
