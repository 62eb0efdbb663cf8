"""Files that are whole or not there, and the note beside them that says what they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes the file, or leaves the former one as it was."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def agree(note: Path, about: Mapping[str, Any], *, what: str, remedy: str) -> None:
    """Notes what files that are begun now are of, or makes sure that those begun earlier agree.

    Args:
        note: the file of that note; its folder is made.
        about: what the files are of, as JSON has it.
        what: begins the error: whose files they are, up to "with another KEY".
        remedy: ends it.

    Raises:
        ValueError: the files are of something else, or the note is damaged.
    """
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, dict(about))
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{note}: not JSON; {remedy}")
    for key in sorted({*found, *about}):
        if found.get(key) != about.get(key):
            raise ValueError(
                f"{what} with another {key} ({found.get(key)!r}, now {about.get(key)!r}); {remedy}"
            )
