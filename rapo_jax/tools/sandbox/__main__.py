"""Runs a program from standard input in the agent's Python tool, and prints the observation.

    echo 'print(37 * 2)' | python -m rapo_jax.tools.sandbox

The flags are the keys config.tools.*, with their defaults. Whatever the program does, the exit
status is 0; it is 2 if the tool cannot start. The outcome and the missing layers of confinement are
printed to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rapo_jax.config import KEYS
from rapo_jax.tools.sandbox.pool import python_tool


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("timeout_s", "memory_mb", "output_chars"):
        key = KEYS[f"tools.{name}"]
        text = f"{key.meaning}, in {key.unit}; default {key.value}"
        parser.add_argument(f"--{name}", type=type(key.value), default=key.value, help=text)
    require = KEYS["tools.python.require"]
    parser.add_argument(
        "--require",
        nargs="*",
        default=require.value,
        choices=tuple(require.choices),
        metavar="LAYER",
        help=f"{require.meaning}: {', '.join(require.choices)}",
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
