"""SHA-256 digests of the files of a folder, and what differs from them later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from rapo_jax.io.files import read_json, write_json

DIGESTS = "digests.json"
"""The file of a folder that holds the digests of all others."""

Digests: TypeAlias = dict[str, str]
"""File, relative to its folder -> its length in bytes and its SHA-256; "" if it cannot be read."""


def files_of(folder: Path) -> list[str]:
    """All files of a folder and its sub-folders but DIGESTS, sorted; relative to it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return sorted(str(path.relative_to(folder)) for path in files)


def digests(folder: Path, names: Iterable[str]) -> Digests:
    """Digests of these files; several are read at a time."""

    def digest(name: str) -> str:
        try:
            with open(folder / name, "rb") as file:  # digesting frees the interpreter lock
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                return f"{file.tell()} {sha256}"
        except OSError:  # missing, or on a bad part of the disk
            return ""

    names = list(names)
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def write_digests(folder: Path, *, without: Iterable[str] = ()) -> None:
    """Writes the digests of all files of a folder, some names excepted, into its DIGESTS."""
    write_json(folder / DIGESTS, digests(folder, [n for n in files_of(folder) if n not in without]))


def check_digests(folder: Path, *, what: str, remedy: str) -> None:
    """Compares all files of a folder with its DIGESTS; without these it prints that it cannot.

    Raises:
        ValueError: a file is damaged; `what` and `remedy` begin and end the message.
    """
    recorded = read_json(folder / DIGESTS)
    if recorded is None:
        print(f"{what} {folder} has no {DIGESTS}: its files are not checked", flush=True)
    elif lines := damage(recorded, digests(folder, recorded)):
        raise ValueError(f"{what} {folder} is damaged: {lines[0]}; {remedy}")


def damage(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is wrong with each file whose digest is not the recorded one."""
    lines = []
    for name, digest in now.items():
        before, after = recorded[name].split()[0], digest.split()[:1]
        if not after:
            lines.append(f"{name} is missing or cannot be read")
        elif after != [before]:
            lines.append(f"{name} has {after[0]} bytes instead of {before}")
        elif digest != recorded[name]:
            lines.append(f"{name} has other contents than were saved")
    return lines
