"""Runs studies, most of them the paper's, and writes their pages: table, picture, verdicts.

    python launch/studies.py ablation --workdir=runs/studies
    python launch/studies.py methods --workdir=runs/studies --seeds=0,1,2 --jobs=2
    python launch/studies.py all --workdir=runs/studies --dry-run

A study is a sweep (launch/sweep.py) in WORKDIR/runs, whose runs all studies share: what is finished
is not run again, so the same command continues after an interruption, and a study takes the runs
that another one has made. Flags --config.KEY=VALUE are passed to all runs. With --per-seed=buffer
a seed is also that of the buffer, with --per-seed=both that of the cold start, too: intervals then
hold for buffers drawn anew, not for one of them. The configs of all named studies are checked
before the first run starts.

The page is NAME.md in WORKDIR/pages (or --output), beside its picture NAME.svg and NAME.json, which
holds the numbers of every run. Where NAME.json is there already, its seeds stay in the page unless
they have a finished run here: seeds can be added later, and on another machine. (Pictures of curves
and of rollouts are of the runs here alone.) --pages-only writes the pages of the finished runs and
runs nothing. The exit status is 1 if a run failed, 2 if a config is not valid.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sweep
from jobs import GRACE_S, ROOT, say, use_environment
from parts import PER_SEED, PER_SEED_HELP
from variants import plan, setting, split

if TYPE_CHECKING:
    from rapo_jax.report.study_pages import Numbers


def main(arguments: Sequence[str], program: Sequence[str] = sweep.PROGRAM) -> int:
    """Runs the studies of these flags and writes their pages; returns the exit status."""
    from rapo_jax.report.study_table import STUDIES

    flags, passed = _read(arguments, {name: each.title for name, each in STUDIES.items()})
    names = list(STUDIES) if flags.study == "all" else [flags.study]
    common, _ = sweep.read_configs(flags.config, passed, {})
    variants = {name: STUDIES[name].runs(common) for name in names}
    for name, settings in variants.items():
        _check_free(name, settings, passed)
        _check_agent(name, settings, str(common["buffer.agent"]))
    sweeps = {name: _sweep_of(settings, flags, passed) for name, settings in variants.items()}
    options = [f"--config={_within(flags.config)}", *_per_seed(flags), *passed]
    folder = flags.output or flags.workdir / "pages"
    for name, settings in variants.items():
        _earlier(name, folder, options, settings)
    status = 0
    for name, each in sweeps.items():
        say(f"study {name}: {STUDIES[name].title}")
        if flags.pages_only:
            sweep.check_same_config(
                flags.workdir / "runs", common, flags.config, passed, flags.per_seed
            )
        else:
            status = max(status, sweep.run_sweep(each, program))
        if not flags.dry_run:
            _write(name, variants[name], flags, folder, options)
    return status


def _check_free(name: str, variants: Mapping[str, str], passed: Sequence[str]) -> None:
    """Refuses flags for keys that a study sets itself."""
    taken = {key for each in variants.values() for key, _ in map(setting, split(each))} | {"seed"}
    for flag in passed:
        key, _ = setting(flag)
        if key in taken:
            remedy = "--seeds names them" if key == "seed" else "leave the flag out"
            sweep.refuse(f"{flag}: the study {name} sets {key} itself; {remedy}")


def _check_agent(name: str, variants: Mapping[str, str], agents: str) -> None:
    """Refuses teachers of other qualities where no agent has one: all would be the same."""
    if "scripted" not in agents.split(",") and "buffer.expert_error" in ",".join(variants.values()):
        reason = f"the study {name} changes buffer.expert_error, which 'scripted' alone reads"
        sweep.refuse(f"buffer.agent={agents!r}: {reason}")


def _sweep_of(
    variants: Mapping[str, str], flags: argparse.Namespace, passed: Sequence[str]
) -> sweep.Sweep:
    """The sweep of a study's variants, with all its configs checked."""
    where = [f"--config={flags.config}", f"--workdir={flags.workdir / 'runs'}"]
    runs = [f"--sweep=seed={flags.seeds}", *(f"--run={each}" for each in variants.values())]
    more = [f"--jobs={flags.jobs}", f"--grace={flags.grace}"]
    more += [*_per_seed(flags), *["--dry-run"] * flags.dry_run]
    return sweep.read_sweep([*where, *runs, *more, *passed])


def _per_seed(flags: argparse.Namespace) -> list[str]:
    """The flag --per-seed as a page names it: not at all where it has its default."""
    return [f"--per-seed={flags.per_seed}"] * (flags.per_seed != "nothing")


def _within(name: str) -> Path:
    """The config file as a command in the repository's root names it."""
    from rapo_jax.config.sources import config_file

    config = config_file(name).resolve()
    return config.relative_to(ROOT) if config.is_relative_to(ROOT) else config


def _earlier(
    name: str, folder: Path, options: Sequence[str], variants: Mapping[str, str]
) -> Numbers | None:
    """The numbers of the page that is there already, refused where they are of other settings."""
    from rapo_jax.report.study_pages import read_numbers

    try:
        return read_numbers(folder / f"{name}.json", options, variants)
    except ValueError as error:
        sweep.refuse(str(error))


def _write(
    name: str,
    variants: Mapping[str, str],
    flags: argparse.Namespace,
    folder: Path,
    options: Sequence[str],
) -> None:
    """The page of a study, from its finished runs and the numbers of earlier seeds."""
    from rapo_jax.report.runs import load_run
    from rapo_jax.report.studies import measured
    from rapo_jax.report.study_pages import joined, numbers_of, write_page
    from rapo_jax.report.study_table import STUDIES

    study = STUDIES[name]
    named = {
        label: plan([f"seed={flags.seeds}"], [settings]) for label, settings in variants.items()
    }
    runs = {
        label: [load_run(flags.workdir / "runs" / run) for run in found]
        for label, found in named.items()
    }
    values = (study.collect or measured)(runs, study.measures)
    every = [run for found in runs.values() for run in found]
    numbers = joined(
        numbers_of(options, variants, every, values), _earlier(name, folder, options, variants)
    )
    folder.mkdir(parents=True, exist_ok=True)
    study.draw(runs, numbers.values, study.measures, folder / f"{name}.svg")
    say("\n" + write_page(name, study, numbers, folder))
    say(f"page: {folder / f'{name}.md'}")


def _read(arguments: Sequence[str], titles: dict[str, str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python launch/studies.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="studies:\n" + "\n".join(f"  {name:12}{title}" for name, title in titles.items()),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("study", choices=[*titles, "all"], metavar="STUDY", help="one of those below, or all")
    add("--workdir", required=True, type=Path, help="folder of the studies")
    add("--config", default=str(ROOT / "configs" / "tiny.py"), help="config file of all runs")
    add("--seeds", default="0,1,2,3,4", help="seeds of each variant, with commas")
    add("--per-seed", choices=[*PER_SEED], default="nothing", help=PER_SEED_HELP)
    add("--jobs", type=int, default=1, help=sweep.JOBS_HELP)
    add("--grace", type=float, default=GRACE_S, metavar="SECONDS", help=sweep.GRACE_HELP)
    add("--output", type=Path, help="folder of the pages; WORKDIR/pages unless given")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--pages-only", action="store_true", help="run nothing: pages of the runs that are there")
    add("--dry-run", action="store_true", help="check the configs, print the commands and stop")
    flags, passed = parser.parse_known_args(arguments)
    sweep.check_passed(passed)
    flags.workdir = flags.workdir.resolve()
    return flags, passed


if __name__ == "__main__":
    use_environment()
    sweep.main_of(main)
