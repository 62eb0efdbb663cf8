"""Files that are whole or not there, the note of what they are of, and who may write them now."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = ".lock"
"""Its file in a folder that one process at a time may write."""


def write_text(path: Path, text: str) -> None:
    """Writes the file, or leaves the former one as it was."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def claimed(folder: Path, *, key: str) -> Iterator[None]:
    """Keeps other processes out of `folder`; the operating system gives it back if this one dies.

    The lock is a record lock on FOLDER/LOCK, which children do not inherit and NFS knows. Where a
    file system has none, a line says so.

    Raises:
        ValueError: another process is at work there; `key` says what names the folder.
    """
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"{key}={str(folder)!r}: another process is at work there; wait for its end, or "
                "name another folder"
            ) from None
        except OSError as error:
            print(f"[lock] {folder} cannot be locked ({error.strerror}): start nothing else there")
        yield


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
