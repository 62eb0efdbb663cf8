"""The files of a suite's predictions: written batch by batch, scored when all are sampled.

NAME.json        the questions, the weights and the sampling: a later call must agree with it
NAME.part.jsonl  samples so far, in the order of questions; a killed run continues after them
NAME.jsonl       all samples, scored
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from rapo_jax.io.files import write_or_check, write_text
from rapo_jax.io.jsonl import append_lines
from rapo_jax.tasks.schema import Question


class Sampled(NamedTuple):
    """A sampled response: its text, the name of its Status, and (tool, outcome) of its calls."""

    text: str
    ending: str
    tokens: int
    calls: Sequence[Sequence[str]]


TOO_LONG = Sampled("", "PROMPT_TOO_LONG", 0, ())
"""For a question that does not fit into rollout.prompt_tokens."""


class Prediction(TypedDict):
    """One line of a suite's file, without its scores; `calls` are counts by tool."""

    id: str
    sample: int
    question: str
    gold: list[str]
    group: str
    metric: str
    ending: str
    calls: dict[str, int]
    failed_calls: dict[str, int]
    tokens: int
    text: str


def prediction(question: Question, metric: str, sampled: Sampled, *, sample: int) -> Prediction:
    calls = Counter(tool for tool, _ in sampled.calls)
    failed = Counter(tool for tool, outcome in sampled.calls if outcome != "ok")
    return {
        "id": question.id,
        "sample": sample,
        "question": question.question,
        "gold": list(question.answers),
        "group": question.kind,
        "metric": metric,
        "ending": sampled.ending,
        "calls": dict(sorted(calls.items())),
        "failed_calls": dict(sorted(failed.items())),
        "tokens": sampled.tokens,
        "text": sampled.text,
    }


def join_parts(
    parts: Iterable[Sequence[Prediction]], wanted: Sequence[tuple[str, int]]
) -> list[Prediction]:
    """The predictions of all processes, each for its part of the rows, as one list.

    Raises:
        RuntimeError: they are not exactly the `wanted` ones: (id, sample) of every row.
    """
    rows = [row for part in parts for row in part]
    predicted = [(row["id"], row["sample"]) for row in rows]
    if predicted != list(wanted):
        lost = set(wanted) - set(predicted)
        raise RuntimeError(
            f"evaluate.suites: {len(wanted)} rows were to be predicted, {len(predicted)} came back "
            f"({len(lost)} lost, the first {min(lost, default=None)})"
        )
    return rows


class Predictions:
    """The files of one suite. `wanted` are (id, sample) of all rows to sample, in their order."""

    def __init__(self, folder: Path, name: str, wanted: Sequence[tuple[str, int]]) -> None:
        self.name, self._wanted = name, list(wanted)
        self._info = folder / f"{name}.json"
        self._part = folder / f"{name}.part.jsonl"
        self.path = folder / f"{name}.jsonl"

    def begin(self, info: Mapping[str, object], *, batch: int) -> int:
        """The number of rows sampled earlier, in whole batches, or all.

        Raises:
            ValueError: they were sampled with another `info`, or a file is damaged.
        """
        what = f"evaluate.suites={self.name!r}: {self._info.parent} holds its predictions"
        write_or_check(self._info, info, what=what, remedy=self._remedy())
        if self.path.is_file():
            return len(self._wanted)
        lines = self._part.read_bytes().split(b"\n")[:-1] if self._part.is_file() else []
        keep = len(lines)
        if keep < len(self._wanted):
            keep -= keep % batch
        self._check_rows(self._rows(lines[:keep]), self._wanted[:keep])
        if self._part.is_file():
            os.truncate(self._part, sum(len(line) + 1 for line in lines[:keep]))
        return keep

    def append(self, rows: Sequence[Prediction]) -> None:
        append_lines(self._part, "".join(json.dumps(row) + "\n" for row in rows))

    def sampled(self) -> list[Prediction]:
        """The rows of all `wanted` samples, scored before or not.

        Raises:
            ValueError: some are missing.
        """
        whole = self.path if self.path.is_file() else self._part
        lines = whole.read_bytes().split(b"\n")[:-1] if whole.is_file() else []
        rows = [row for row in self._rows(lines) if row.get("ending") != TOO_LONG.ending]
        self._check_rows(rows, self._wanted)
        return rows

    def finish(self, rows: Sequence[Prediction]) -> None:
        """Writes the scored rows; the samples are in them."""
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._part.unlink(missing_ok=True)

    def _rows(self, lines: Sequence[bytes]) -> list[Prediction]:
        try:
            rows = [json.loads(line) for line in lines]
        except ValueError:
            rows = [None]
        if all(isinstance(row, dict) for row in rows):
            return rows
        raise ValueError(f"{self.path.parent}: {self.name}.* are damaged; {self._remedy()}")

    def _check_rows(self, rows: Sequence[Prediction], wanted: Sequence[tuple[str, int]]) -> None:
        if [(row.get("id"), row.get("sample")) for row in rows] != list(wanted):
            raise ValueError(
                f"evaluate.suites={self.name!r}: {self._info.parent} does not hold the "
                f"{len(wanted)} predictions that it should; {self._remedy()}"
            )

    def _remedy(self) -> str:
        return f"move {self.name}.* away from there to predict again"
