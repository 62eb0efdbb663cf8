"""RolloutReplay's store of past groups, with the log-probabilities of their sampling policy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rapo_jax.tasks import Question
from rapo_jax.tasks.schema import question_of
from rapo_jax.train.measures import RowScores
from rapo_jax.types import Trajectory

TAPE_ARRAYS = len(dataclasses.fields(Trajectory)) - 1
"""Past rows did not branch: `forks` is None."""
FOLDER = "replay"
"""In the workdir: STEP.npz, the store at each checkpoint."""


class PastGroup(NamedTuple):
    """One question's rollouts: arrays of G rows."""

    question: Question
    trajectory: Trajectory
    scores: RowScores


class Replay:
    """The newest group of each of the last `capacity` questions whose group had a spread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._groups: dict[str, PastGroup] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, group: PastGroup) -> None:
        """Stores the group; it replaces an older one of its question, and the oldest is dropped.

        A group of equal rewards is not stored: its advantages are 0.
        """
        if np.ptp(group.scores.reward_B) == 0:
            return
        self._groups.pop(group.question.id, None)
        self._groups[group.question.id] = group
        if len(self._groups) > self._capacity:
            del self._groups[next(iter(self._groups))]

    def draw(
        self, rng: np.random.Generator, count: int, *, without: Collection[str]
    ) -> list[PastGroup]:
        """`count` different groups, each as likely as any other, not of the questions `without`.

        An empty list if there are fewer.
        """
        groups = [group for name, group in self._groups.items() if name not in without]
        if len(groups) < count:
            return []
        return [groups[i] for i in rng.choice(len(groups), count, replace=False)]

    def save(self, path: Path) -> None:
        """Writes all groups in their order; the file is whole or not there."""
        groups = list(self._groups.values())
        rows = [(*jax.tree.leaves(each.trajectory), *each.scores) for each in groups]
        questions = [json.dumps(dataclasses.asdict(each.question)) for each in groups]
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".tmp")
        with open(draft, "wb") as file:  # compressed, for rows are mostly padding
            columns = [np.stack(column) for column in zip(*rows, strict=True)]
            np.savez_compressed(file, np.array(questions, np.str_), *columns)
        draft.replace(path)

    def load(self, path: Path) -> None:
        """Takes the groups that `save` wrote.

        Raises:
            ValueError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                questions, *columns = (file[f"arr_{i}"] for i in range(len(file.files)))
        except Exception as error:  # of zipfile, zlib or numpy
            raise ValueError(
                f"{path}: the past groups cannot be read ({error}); restore the file from a "
                "backup, or start a new --workdir"
            ) from error
        self._groups = {}
        for packed, *row in zip(questions, *columns, strict=True):
            question = question_of(json.loads(str(packed)))
            tape, scores = row[:TAPE_ARRAYS], row[TAPE_ARRAYS:]
            self._groups[question.id] = PastGroup(question, Trajectory(*tape), RowScores(*scores))
