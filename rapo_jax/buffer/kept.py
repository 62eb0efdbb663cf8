"""Sampled trajectories as they are kept while a buffer is built: a killed build goes on with them.

NAME.json   what they are of: a later build must agree with it
NAME.jsonl  a trajectory a line, appended as soon as it is finished
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rapo_jax.io.files import agree, write_text


class Rollout(NamedTuple):
    """A finished trajectory: the `sample`-th of its question, as step traces with their results."""

    question_id: str
    question: str
    sample: int
    steps: list[str]
    origin: str


class KeptRollouts:
    """The files of one agent; `append` may be called from any thread."""

    def __init__(self, folder: Path, name: str) -> None:
        self._about = folder / f"{name}.json"
        self.path = folder / f"{name}.jsonl"
        self._lock = threading.Lock()

    def begin(self, about: Mapping[str, Any]) -> list[Rollout]:
        """The trajectories that are there; a last line that a kill cut off is dropped.

        Raises:
            ValueError: they are of something else than `about` (JSON), or the file is damaged.
        """
        what = f"buffer: {self.path} holds trajectories sampled"
        agree(self._about, about, what=what, remedy=self._remedy())
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        return [self._read(n, line) for n, line in enumerate(whole.split(b"\n")[:-1], start=1)]

    def append(self, rollouts: Iterable[Rollout]) -> None:
        """Writes finished trajectories; they are on disk when this returns."""
        lines = "".join(json.dumps(rollout._asdict()) + "\n" for rollout in rollouts)
        with self._lock, open(self.path, "ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, rollouts: Sequence[Rollout]) -> None:
        """Keeps these alone."""
        write_text(self.path, "".join(json.dumps(row._asdict()) + "\n" for row in rollouts))

    def _read(self, number: int, line: bytes) -> Rollout:
        try:
            return Rollout(**json.loads(line))
        except (ValueError, TypeError):
            raise ValueError(f"{self.path}, line {number}: damaged; {self._remedy()}") from None

    def _remedy(self) -> str:
        name = self._about.stem
        return f"set the old value back, or move {name}.* away from there to sample anew"
