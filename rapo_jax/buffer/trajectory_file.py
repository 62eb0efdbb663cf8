"""Sampled trajectories on disk while a buffer is built, so that a killed build can continue.

NAME.json   what sampled them and how: a later build must agree with it
NAME.jsonl  one trajectory a line, not scored yet, appended as soon as it is finished
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rapo_jax.buffer.trajectories import UNSCORED, AgentTrajectory
from rapo_jax.io.files import write_or_check, write_text
from rapo_jax.io.jsonl import append_lines


class TrajectoryFile:
    """The files of one agent; `append` may be called from any thread."""

    def __init__(self, folder: Path, name: str) -> None:
        self._info = folder / f"{name}.json"
        self.path = folder / f"{name}.jsonl"
        self._lock = threading.Lock()

    def begin(self, info: Mapping[str, object]) -> list[AgentTrajectory]:
        """The trajectories in the file; a last line that a kill cut off is dropped.

        Raises:
            ValueError: they were sampled with another `info` (JSON), or the file is damaged.
        """
        what = f"buffer: {self.path} holds trajectories sampled"
        write_or_check(self._info, info, what=what, remedy=self._remedy())
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        return [self._read(n, line) for n, line in enumerate(whole.split(b"\n")[:-1], start=1)]

    def append(self, trajectories: Iterable[AgentTrajectory]) -> None:
        """Writes finished trajectories; they are on disk when this returns. See `append_lines`."""
        lines = _lines(trajectories)
        with self._lock:
            append_lines(self.path, lines, sync=True)

    def rewrite(self, trajectories: Sequence[AgentTrajectory]) -> None:
        """Replaces the contents by these trajectories."""
        write_text(self.path, _lines(trajectories))

    def _read(self, number: int, line: bytes) -> AgentTrajectory:
        try:
            return AgentTrajectory(**json.loads(line), reward=UNSCORED)
        except (ValueError, TypeError):
            raise ValueError(f"{self.path}, line {number}: damaged; {self._remedy()}") from None

    def _remedy(self) -> str:
        name = self._info.stem
        return f"set the old value back, or move {name}.* away from there to sample again"


def _lines(trajectories: Iterable[AgentTrajectory]) -> str:
    rows = [trajectory._asdict() for trajectory in trajectories]
    return "".join(
        json.dumps({name: value for name, value in row.items() if name != "reward"}) + "\n"
        for row in rows
    )
