"""A cache on disk: texts by key in one SQLite file, for several threads and processes."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from pathlib import Path

from rapo_jax.io.files import Json


def cache_key(*parts: Json) -> str:
    """A digest of JSON values; equal values give equal keys in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class DiskCache:
    """Texts by key, from any thread. Raises ValueError for a file that is no such cache."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self._path, timeout=60, check_same_thread=False)
            with self._db:
                self._db.execute("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, text)")
        except sqlite3.Error as error:
            raise ValueError(f"cache {path}: unreadable ({error}); delete it") from error

    def get(self, key: str) -> str | None:
        with self._lock:
            row = self._db.execute("SELECT text FROM texts WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, text: str) -> None:
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO texts VALUES (?, ?)", (key, text))

    def close(self) -> None:
        with self._lock:
            self._db.close()
