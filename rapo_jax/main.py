"""rapo_jax: trains agents with retrieval-augmented policy optimisation (RAPO, arXiv 2603.03078).

    python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/tiny
    python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/grpo --config.method=grpo
    python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/tiny \\
        --config.stages="('evaluate','report')"
    python -m rapo_jax.main --config=configs/default.py --workdir=runs/score \\
        --config.stages="('score',)" --config.model.folder=FOLDER \\
        --config.score.input=tokens.jsonl --config.score.output=logp.jsonl

A finished stage is skipped; a killed one continues from its last checkpoint. score and export take
the weights of WORKDIR's newest checkpoint, or else those of config.model.folder.

SIGTERM, SIGINT (ctrl-C) and SIGHUP end a run after its running step or batch, with a checkpoint
and status 0; the same command resumes it. A second signal ends it at once with 128 + its number
(130 for ctrl-C, 143 for SIGTERM). A value that cannot work has status 2, any other error 1.

Several hosts: the same command on each, on one --workdir that all of them see; by SLURM or on a
TPU pod with --config.distributed.mode=auto, elsewhere with
    --config.distributed.mode=explicit --config.distributed.coordinator=HOST:PORT
    --config.distributed.processes=N --config.distributed.process=0 (to N - 1)
A signal to any of them saves a checkpoint on all and ends them with status 0.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from rapo_jax.config import READERS
from rapo_jax.config.read import read_settings
from rapo_jax.config.reference import help_text
from rapo_jax.io.files import claimed
from rapo_jax.io.user_code import exit_is_an_error
from rapo_jax.model.hf_config import refuse_contradictions
from rapo_jax.stages.job import open_workdir, run_stages
from rapo_jax.train import distributed

__doc__ = f"{__doc__}\n{help_text()}"  # what --help prints

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/tiny.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder that the run writes into.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument: {argv[1]}")
    if CONFIG.value is None or WORKDIR.value is None:
        raise app.UsageError("--config and --workdir are needed; see --help")
    if logging.get_verbosity() == logging.INFO:  # absl's default: a line for every file touched
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
    # User code may be next to the config file; last, so that it hides no installed module.
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    sys.path.append(str(Path(config_file).resolve().parent))
    try:
        distributed.start(settings.distributed)
    except ValueError as error:
        refuse(error)
    try:
        fresh = open_workdir(Path(WORKDIR.value), CONFIG.value.to_dict())
        with exit_is_an_error(), ExitStack() as held:
            if not set(settings.stages) <= set(READERS):
                claim = claimed(Path(WORKDIR.value), key="workdir")
                distributed.on_first(lambda: held.enter_context(claim))
            run_stages(settings, Path(WORKDIR.value), fresh=fresh)
    except distributed.Stopped as stopped:
        print(f"[stop] {stopped}; run the same command to resume", flush=True)
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


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, but a --config without a file and an unknown key are refused in one line."""
    named = (x.partition("=")[2] for x in argv if x.startswith("--config="))
    for file in (name.partition(":")[0] for name in named):
        if not Path(file).is_file():
            refuse(FileNotFoundError(f"--config={file}: there is no such file"))
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError) as error:
        inner: object = error
        while isinstance(inner, Exception):
            inner = inner.args[0]
        key, _, hint = str(inner).partition("\n")
        flags_of_key = [x for x in argv if key.strip("'\"") in x.partition("=")[0].split(".")]
        if not flags_of_key:  # a mistake in the config file itself
            raise
        name, hint = flags_of_key[0].partition("=")[0], hint or "docs/config.md has them all."
        refuse(ValueError(f"{name}: the config has no such key. {hint}"))


def entry() -> None:
    """The console script."""
    cache = str(Path.home() / ".cache" / "rapo_jax" / "xla")
    for key, value in (
        ("jax_compilation_cache_dir", cache),
        ("jax_persistent_cache_min_compile_time_secs", 0.5),
    ):
        if key.upper() not in os.environ:
            jax.config.update(key, value)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read at its import, much later
    sys.path.insert(0, os.getcwd())  # config files import their base as configs.default
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    entry()
