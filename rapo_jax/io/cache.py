"""A cache on disk: texts by key in one SQLite file, for several threads and processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from pathlib import Path

from rapo_jax.io.files import Json

FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
"""SQLite error codes of a full disk."""
REMEDY = "name a file in a folder that you may write"
_log = logging.getLogger(__name__)


def cache_key(*parts: Json) -> str:
    """A digest of JSON values; equal values give equal keys in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_cache(path: str | Path, *, key: str) -> None:
    """Raises what `DiskCache` would, without making a file."""
    here = Path(path).absolute()
    if here.exists():
        DiskCache(path, key=key).close()
        return
    near = next(folder for folder in here.parents if folder.exists())
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        raise ValueError(f"{key}={str(path)!r}: cannot be made in {near}; {REMEDY}")


class DiskCache:
    """Texts by key, from any thread.

    Raises ValueError, with the config key `key`, for a file that is no such cache, or that
    cannot be made.

    A row that cannot be read counts as missing. A text that cannot be written, as on a full disk,
    is not kept: it counts in `unkept`, and the first one is logged.
    """

    def __init__(self, path: str | Path, *, key: str = "cache") -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self.unkept = 0
        self._warned = False
        named = f"{key}={str(path)!r}"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"cannot be written ({error.strerror})"
            raise ValueError(f"{named}: {why}; {REMEDY}") from None
        try:
            self._db = sqlite3.connect(self._path, timeout=60, check_same_thread=False)
            with self._db:
                self._db.execute("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, text)")
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in FULL:
                self._warn(error)
                return
            if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise ValueError(f"{named}: cannot be written ({error}); {REMEDY}") from None
            raise ValueError(f"{named}: unreadable ({error}); delete it") from error

    def get(self, key: str) -> str | None:
        try:
            with self._lock:
                row = self._db.execute("SELECT text FROM texts WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:  # such as a text that is no UTF-8
            self._warn(error)
            return None
        return row[0] if row and isinstance(row[0], str) else None

    def put(self, key: str, text: str) -> None:
        try:
            with self._lock, self._db:
                self._db.execute("INSERT OR REPLACE INTO texts VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            self.unkept += 1
            self._warn(error)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _warn(self, error: sqlite3.Error) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("cache %s: %s; what it cannot keep is asked for again", self._path, error)
