"""Runs a program of standard input as an agent's Python tool would, and prints the observation.

    echo 'print(37 * 2)' | python -m rapo_jax.tools.sandbox

The flags are the keys config.tools.*, with the defaults of configs/default.py. Whatever the
program does, the exit status is 0; it is 2 where the tool itself cannot start. What the tool has
to say beside the observation, such as a layer of confinement missing here, goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from configs.default import get_config
from rapo_jax.config import SANDBOX_LAYERS
from rapo_jax.tools.sandbox.pool import python_tool


def main(arguments: Sequence[str] | None = None) -> None:
    defaults = get_config().tools
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, kind, about in (
        ("timeout_s", float, "seconds, and about as many of CPU time"),
        ("memory_mb", int, "MiB of address space"),
        ("output_chars", int, "characters of output kept"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"{about}; default {default}"
        )
    parser.add_argument(
        "--require",
        nargs="*",
        default=defaults.python.require,
        choices=("all", *SANDBOX_LAYERS),
        metavar="LAYER",
        help="refuse to run without these layers of confinement: all, or of "
        + ", ".join(SANDBOX_LAYERS),
    )
    flags = parser.parse_args(arguments)
    try:
        tool = python_tool(workers=1, **vars(flags))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if tool.missing_layers:
        print(f"[python] confined without {', '.join(tool.missing_layers)}", file=sys.stderr)
    code = sys.stdin.buffer.read().decode("utf-8", "replace")
    (observation,) = tool([code])
    tool.close()
    print(observation.text)
    print(f"[python] {observation.outcome}", file=sys.stderr)


if __name__ == "__main__":
    main()
