"""Reads and checks the configs of a sweep's runs, in a process of its own: user code is imported.

stdin: JSON, the config of all runs and the flags of each as pairs (dotted key, text). stdout: a
JSON list with, for each run, its config as dotted key -> value (null where it cannot be read) and
the error, '' where there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import resolve
from rapo_jax.main import NO_WEIGHTS
from rapo_jax.model.hf_config import refuse_contradictions
from rapo_jax.tasks.user_code import load_user_code
from rapo_jax.tools import close_tools


def read(config: str, flags: Sequence[tuple[str, str]]) -> tuple[dict[str, object] | None, str]:
    """The config of one run, and why it is invalid."""
    values = None
    try:
        resolved = resolve(config, flags=flags)
        values = dict(_flat(resolved.config))
        settings = read_settings(resolved.config)
        if not set(settings.stages) <= NO_WEIGHTS:
            refuse_contradictions(settings.model, resolved.overridden)
        close_tools(load_user_code(settings)[1])
    except (ValueError, FileNotFoundError) as error:
        return values, " ".join(str(error).split())
    except RuntimeError as error:  # of the config file's code
        return values, f"{error}: {error.__cause__}"
    return values, ""


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def main() -> None:
    sys.path[0] = os.getcwd()  # config files import their base as configs.default
    with contextlib.redirect_stdout(sys.stderr):  # user code may print
        config, runs = json.load(sys.stdin)
        results = [read(config, flags) for flags in runs]
    json.dump(results, sys.stdout, default=str)


if __name__ == "__main__":
    main()
