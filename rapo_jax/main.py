"""rapo_jax: trains agents with retrieval-augmented policy optimisation (RAPO, arXiv 2603.03078).

    rapo-jax --config=tiny --workdir=runs/tiny
    rapo-jax --config=tiny --workdir=runs/grpo --config.method=grpo
    rapo-jax --workdir=runs/tiny --config.rl.steps=320
    rapo-jax --workdir=runs/tiny --config.stages="('export',)" --config.export.folder=FOLDER
    rapo-jax --config=my_config.py --override=FILE.yaml --print_config

`rapo-jax` is `python -m rapo_jax.main`. --config is a Python file, such as configs/tiny.py, the
name of one of this package (tiny, qwen7b, …; smoke:qwen7b makes another one small), or the
config.json of a workdir. Without it, the run of --workdir continues with the config that it has: a
finished stage is skipped, a stopped one resumes from its last checkpoint. score and export take the
weights of the newest checkpoint, or else those of config.model.folder.

SIGTERM, SIGINT (ctrl-C) and SIGHUP end a run after its running step or batch, with a checkpoint
and status 0; the same command resumes it. A second signal ends it at once with 128 + its number
(130 for ctrl-C, 143 for SIGTERM). An invalid value exits with status 2, any other
error with 1.

Several hosts: the same command on each, on one --workdir that all of them see; by SLURM or on a
TPU pod with --config.distributed.mode=auto, elsewhere with
    --config.distributed.mode=explicit --config.distributed.coordinator=HOST:PORT
    --config.distributed.processes=N --config.distributed.process=0 (to N - 1)
A signal to any of them saves a checkpoint on all and ends them with status 0.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags

from rapo_jax.config import NO_WEIGHTS
from rapo_jax.config.read import read_settings
from rapo_jax.config.reference import help_text
from rapo_jax.config.rules import missing_models
from rapo_jax.config.sources import FLAG, Resolved, as_yaml, resolve
from rapo_jax.io import signals
from rapo_jax.io.hub import download


class CommandLine(NamedTuple):
    """The flags of the program; `resolve_flags` makes a config of them."""

    config: str | None
    workdir: Path | None
    overrides: list[str]
    print_config: bool
    flags: list[tuple[str, str]]
    """(dotted key, text) of each --config.KEY=TEXT, which absl does not know."""


def read_flags(arguments: Sequence[str]) -> CommandLine:
    """The flags in `arguments`; a usage error ends the program with status 2 and one line."""
    declared = _flags()
    try:
        others = declared(["rapo-jax", *arguments], known_only=True)[1:]
    except flags.Error as error:
        _refuse(f"{error}; see --help")
    if declared.help:
        _show(f"{__doc__}\n{help_text()}\n{declared.get_help()}\n")
        raise SystemExit(0)
    of_keys = []
    others = [each for each in others if each != "--"]
    while others:
        name, equals, text = others.pop(0).partition("=")
        off = name.startswith("--noconfig.")
        if not name.startswith(FLAG) and not off:
            _refuse(f"unexpected argument: {name}{equals}{text}; see --help")
        if not equals:
            separate = others and not others[0].startswith("--") and not off
            text = others.pop(0) if separate else str(not off)
        of_keys.append((name.removeprefix("--no").removeprefix("--").removeprefix("config."), text))
    if declared.workdir == "":
        _refuse("--workdir= is empty: name a folder that the run writes into")
    workdir = None if declared.workdir is None else Path(declared.workdir)
    return CommandLine(declared.config, workdir, declared.override, declared.print_config, of_keys)


def _flags() -> flags.FlagValues:
    """The flags that absl reads, --flagfile among them; those of keys are not declared here."""
    declared, to = flags.FlagValues(), "rapo-jax"
    text = "config file, or the name of one; see above"
    flags.DEFINE_string("config", None, text, declared, module_name=to)
    flags.DEFINE_string(
        "workdir", None, "folder that the run writes into", declared, module_name=to
    )
    text = "YAML or JSON file of keys"
    flags.DEFINE_multi_string("override", [], text, declared, module_name=to)
    text = "print every value and where it is from"
    flags.DEFINE_boolean("print_config", False, text, declared, module_name=to)
    flags.DEFINE_boolean("help", False, "print this", declared, module_name=to, short_name="h")
    return declared


def resolve_flags(line: CommandLine) -> Resolved:
    """The config of a command line; what cannot be read ends the program with status 2."""
    try:
        return resolve(
            line.config, workdir=line.workdir, overrides=line.overrides, flags=line.flags
        )
    except (ValueError, OSError) as error:
        _refuse(error)


def main(arguments: Sequence[str]) -> None:
    line = read_flags(arguments)
    resolved = resolve_flags(line)
    if line.print_config:
        _show(as_yaml(resolved) + "\n")
    try:
        if line.workdir and not line.print_config:
            download(missing_models(read_settings(resolved.config, files=False)))
        settings = read_settings(resolved.config)
    except (ValueError, OSError) as error:
        _refuse(f"{error}{_origin(str(error), resolved)}")
    if line.print_config:
        return
    if line.workdir is None:
        _refuse("--workdir is missing: name a folder that the run writes into; see --help")
    from rapo_jax.stages import job  # jax: seconds, which no refusal above waits for

    with job.claimed_workdir(
        settings,
        resolved.config,
        line.workdir,
        config_file=str(resolved.file.resolve() if resolved.file else ""),
        checked=None if set(settings.stages) <= NO_WEIGHTS else resolved.overridden,
    ) as fresh:
        if fresh and resolved.published:
            print(f"[config] published settings of the method: {', '.join(resolved.published)}")
        job.run_stages(settings, line.workdir, fresh=fresh)


def _show(text: str) -> None:
    """Prints; if the reader, such as `head`, has read enough, that is no error."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _origin(error: str, resolved: Resolved) -> str:
    """Where a refused key was set, if it was in a file."""
    key = re.match(r"[\w.]*", error)
    origin = resolved.origins.get(key[0], "") if key else ""
    return f" (from {origin})" if Path(origin).suffix in (".py", ".yaml", ".yml", ".json") else ""


def _refuse(error: object) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def entry() -> None:
    """The console script `rapo-jax`."""
    signals.end_in_one_line()
    with contextlib.suppress(RuntimeError):  # a user without a home has no cache
        cache = str(Path.home() / ".cache" / "rapo_jax" / "xla")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)  # these three: read at imports
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.path.insert(0, os.getcwd())  # user code, and in a checkout config files' own imports
    faulthandler.enable()
    main(sys.argv[1:])


if __name__ == "__main__":
    entry()
