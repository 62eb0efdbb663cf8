"""Small files written whole or not at all, read with errors that name them; locks on folders."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

Json: TypeAlias = Any
"""A value that `json.loads` returns or `json.dumps` takes."""

LOCK = ".lock"
"""The lock file of a folder that one process at a time may write."""
POLL_S = 0.5
"""Between two looks at a lock that another process holds."""
_claims: set[Path] = set()
"""Folders that `claimed` holds in this process."""


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one step: neither a failure nor a power cut leaves half of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others may write it, too
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is on the disk too
    finally:
        os.close(folder)


def write_json(path: Path, value: Json) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, default: Json = None) -> Json:
    """The value in a file of JSON; `default` where there is none.

    Raises:
        ValueError: it is no JSON, as after a crash of the machine; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: cut off or damaged ({error}); restore it from a backup, or remove it; "
            "it is then created again"
        ) from None


def read_object(path: Path) -> dict[str, Json]:
    """The keys in a file of JSON; the caller knows what to do with a damaged one.

    Raises:
        ValueError: the file holds anything else; names it.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the latter: nested too deeply
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object of keys")
    return value


@contextmanager
def claimed(folder: Path, *, key: str) -> Iterator[None]:
    """Locks `folder` against other processes; the operating system unlocks it if this one dies.

    The lock is a record lock on FOLDER/LOCK, which children do not inherit and NFS supports. Where
    a file system has none, a warning is printed.

    Raises:
        ValueError: another process holds the lock; `key` is the config key of the folder.
    """
    claim = folder.resolve()
    if claim in _claims:  # to open the file again would end this process's lock with the second
        raise ValueError(
            f"{key}={str(folder)!r}: this process is at work there already (in a notebook: close "
            "the first session), or name another folder"
        )
    _claims.add(claim)
    try:
        with open(folder / LOCK, "w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ValueError(
                    f"{key}={str(folder)!r}: another process is at work there; wait for its end, "
                    "or name another folder"
                ) from None
            except OSError as error:
                print(
                    f"[lock] {folder} cannot be locked ({error.strerror}): start nothing else there"
                )
            yield
    finally:
        _claims.discard(claim)


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Waits until no other process holds the lock on the file `path`, and holds it.

    `waiting` is called again and again meanwhile, and may raise. Where a file system has no record
    locks, a warning is printed and nothing is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            _lock(file, waiting)
        except OSError as error:
            print(f"[lock] {path} cannot be locked ({error.strerror}): it is not waited for")
        yield


def _lock(file: IO[str], waiting: Callable[[], None] | None) -> None:
    while waiting is not None:
        try:
            return fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            waiting()
            time.sleep(POLL_S)
    fcntl.lockf(file, fcntl.LOCK_EX)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A draft to write into, which then takes the place of `folder`; a failure before leaves it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if folder.exists():  # it cannot be renamed onto a full one: the old one steps aside first
            aside = draft.with_name(draft.name + ".old")
            folder.rename(aside)
            draft.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_or_check(path: Path, metadata: Mapping[str, Json], *, what: str, remedy: str) -> None:
    """Writes the metadata of files that are begun now, or compares it with what is there.

    Args:
        path: the JSON file of the metadata; its folder is made.
        what: begins the error: whose files they are, up to "with another KEY".
        remedy: ends it.

    Raises:
        ValueError: the metadata there differs, or the file is damaged.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(metadata))
        return
    try:
        former = read_object(path)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from None
    for key in sorted({*former, *metadata}):
        old, new = former.get(key), metadata.get(key)
        if old != new:
            raise ValueError(f"{what} with another {key} ({old!r}, now {new!r}); {remedy}")
