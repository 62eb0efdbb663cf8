"""What several parts of the index need of files: their names, and JSON read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEYS = "keys.npy"
KEYS_DONE = "keys.json"
TEXTS_DONE = "texts.json"
TREE = "tree"
ENCODER = "encoder"
BUILD = "build.json"
MANIFEST = "manifest.json"


def shard_folder(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}"


def read_json(path: Path) -> Any:
    """ValueError says that the file is damaged, and what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); build the index again") from None
