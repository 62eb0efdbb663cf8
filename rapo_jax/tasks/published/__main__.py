"""`tfds build` for the published sets where TensorFlow is not installed, with the same flags.

    python -m rapo_jax.tasks.published --config=gsm8k --manual_dir=FOLDER --data_dir=FOLDER

The `tfds` command itself imports tensorflow, apache-beam and mlcroissant for its other subcommands;
building needs none of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import simple_parsing
from tensorflow_datasets.scripts.cli import build

BUILDER = Path(__file__).with_name("builder.py")


def main(argv: list[str]) -> None:
    """Builds a set; where a file is missing, one line reports which, and the exit status is 2."""
    fixed = [str(BUILDER), "--file_format=array_record"]
    try:
        simple_parsing.parse(build.Args, args=[*fixed, *argv]).execute()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main(sys.argv[1:])
