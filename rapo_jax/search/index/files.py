"""Names of the files of an index, and the reader of its JSON files."""

from __future__ import annotations

from pathlib import Path

from rapo_jax.io.files import Json, read_object

KEYS = "keys.npy"
KEYS_DONE = "keys.json"
TEXTS_DONE = "texts.json"
TREE = "tree"
ENCODER = "encoder"
BUILD = "build.json"
MANIFEST = "manifest.json"


def shard_folder(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}"


def read_keys(path: Path, *keys: str) -> dict[str, Json]:
    """The object in a file; raises ValueError if it is missing, damaged or lacks one of `keys`."""
    try:
        found = read_object(path)
        if missing := [key for key in keys if key not in found]:
            raise ValueError(f"{path}: {missing[0]!r} is missing")
    except (OSError, ValueError) as error:
        why = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: cannot be read ({why}); build the index again") from None
    return found
