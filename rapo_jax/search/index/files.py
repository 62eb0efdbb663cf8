"""Names of the files of an index, and the reader of its JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from rapo_jax.io.files import Json

KEYS = "keys.npy"
KEYS_DONE = "keys.json"
TEXTS_DONE = "texts.json"
TREE = "tree"
ENCODER = "encoder"
BUILD = "build.json"
MANIFEST = "manifest.json"


def shard_folder(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}"


def read_json(path: Path) -> Json:
    """The value in a file; raises ValueError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); build the index again") from None
