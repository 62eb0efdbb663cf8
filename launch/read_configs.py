"""Reads and checks the configs of a sweep's runs, in a process of its own: user code is imported.

stdin: a JSON list with the flags of each run. stdout: a JSON list with, for each, its config as
dotted key -> value (null where it cannot be read) and the error, '' where there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from rapo_jax.config.read import read_settings
from rapo_jax.model.hf_config import refuse_contradictions
from rapo_jax.tasks.user_code import load_user_code
from rapo_jax.tools import close_tools


def read(arguments: Sequence[str]) -> tuple[dict[str, object] | None, str]:
    """The config of the flags of one run, and why it cannot work."""
    config = None
    try:
        values, argv = flags.FlagValues(), ["sweep", *arguments]
        holder = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
        values(argv)
        nested = holder.value.to_dict()
        config = dict(_flat(nested))
        settings = read_settings(nested)
        refuse_contradictions(settings.model, config_flags.get_override_values(values["config"]))
        file = config_flags.get_config_filename(values["config"])
        sys.path.append(str(Path(file).resolve().parent))  # as the program does
        close_tools(load_user_code(settings)[1])
    except (AttributeError, KeyError) as error:
        return config, _unknown_key(error, arguments)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        return config, str(error).strip().replace("\n", " ")
    return config, ""


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _unknown_key(error: Exception, arguments: Sequence[str]) -> str:
    """ml_collections nests its error; the innermost text names the key and a near one."""
    inner: object = error
    while isinstance(inner, Exception) and inner.args:
        inner = inner.args[0]
    key, _, hint = str(inner).partition("\n")
    names = [flag.partition("=")[0] for flag in arguments]
    flag = next((name for name in names if key.strip("'\"") in name.split(".")), "")
    if not flag:  # a mistake in the config file itself
        return f"{type(error).__name__}: {error}"
    return f"{flag}: the config has no such key. {hint or 'docs/config.md has them all.'}"


def main() -> None:
    sys.path[0] = os.getcwd()  # config files import their base as configs.default
    with contextlib.redirect_stdout(sys.stderr):  # user code may print
        results = [read(arguments) for arguments in json.load(sys.stdin)]
    json.dump(results, sys.stdout, default=str)


if __name__ == "__main__":
    main()
