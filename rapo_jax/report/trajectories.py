"""Chooses the trajectories of a run that the viewer shows, spread over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from rapo_jax.io.jsonl import JsonObject, as_number, parse_line

ROWS = 4
"""Rows of one question that are shown together."""


class Entry(NamedTuple):
    """The position of a trajectory in its file, and what the choice depends on."""

    offset: int
    stage: str
    step: float
    question: str
    row: int
    retrievals: int
    reward: float


def choose_trajectories(path: Path, limit: int) -> tuple[list[JsonObject], int]:
    """At most `limit` trajectories of the file, and the number that it holds.

    Steps are spread evenly, first and last included. At each step the questions with most
    retrievals are chosen, then those with the most different rewards. Of a question's rows, those
    with a retrieval come first, but one on-policy row is kept if there is one.
    """
    entries = _scan(path)
    steps: dict[tuple[str, float], list[Entry]] = {}
    for entry in entries:
        steps.setdefault((entry.stage, entry.step), []).append(entry)
    count = min(len(steps), max(1, limit // ROWS))
    share = limit // max(1, count)
    places = np.unique(np.linspace(0, len(steps) - 1, count).round().astype(int))
    keys = sorted(steps, key=lambda key: (key[0] != "rl", key))
    chosen = [entry for place in places for entry in _of_step(steps[keys[place]], share)]
    with path.open("rb") as file:
        loaded = [_load(file, entry) for entry in chosen]
    return [each for each in loaded if each is not None], len(entries)


def _scan(path: Path) -> list[Entry]:
    """Every readable trajectory of the file; a row written again by a resumed run counts once."""
    entries: dict[tuple[str, float, str, int], Entry] = {}
    with path.open("rb") as file:
        offset = 0
        for line in file:
            if (trajectory := parse_line(line)) is not None:
                entry = _entry(offset, trajectory)
                entries[entry.stage, entry.step, entry.question, entry.row] = entry
            offset += len(line)
    return list(entries.values())


def _entry(offset: int, trajectory: JsonObject) -> Entry:
    return Entry(
        offset=offset,
        stage=str(trajectory.get("stage", "rl")),
        step=as_number(trajectory.get("step")) or 0.0,
        question=str(trajectory.get("question_id", "")),
        row=int(as_number(trajectory.get("row")) or 0),
        retrievals=sum(each.get("source") == "RETRIEVED" for each in segments_of(trajectory)),
        reward=as_number(trajectory.get("reward")) or 0.0,
    )


def segments_of(trajectory: JsonObject) -> list[JsonObject]:
    """The well-formed segments of a trajectory."""
    segments = trajectory.get("segments")
    segments = segments if isinstance(segments, list) else []
    return [each for each in segments if isinstance(each, dict)]


def _of_step(entries: list[Entry], count: int) -> list[Entry]:
    questions: dict[str, list[Entry]] = {}
    for entry in entries:
        questions.setdefault(entry.question, []).append(entry)

    def rank(rows: list[Entry]) -> tuple[int, float]:
        rewards = [row.reward for row in rows]
        return sum(row.retrievals > 0 for row in rows), max(rewards) - min(rewards)

    ranked = sorted(questions.values(), key=rank, reverse=True)
    return [row for rows in ranked for row in _of_question(rows)][:count]


def _of_question(rows: list[Entry]) -> list[Entry]:
    rows = sorted(rows, key=lambda row: (row.retrievals == 0, row.row))
    kept = rows[:ROWS]
    if len(rows) > ROWS and all(row.retrievals for row in kept):
        kept[-1] = next((row for row in rows if not row.retrievals), kept[-1])
    return kept


def _load(file: IO[bytes], entry: Entry) -> JsonObject | None:
    file.seek(entry.offset)
    return parse_line(file.readline())
