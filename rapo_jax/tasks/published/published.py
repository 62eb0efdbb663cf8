"""The description of a published question set, and a reader of its publisher's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rapo_jax.io.jsonl import LineReport, text_of
from rapo_jax.io.tables import read_table


class Row(NamedTuple):
    """A question, in one schema for all sets. `difficulty` is the publisher's level or type."""

    id: str
    question: str
    answers: tuple[str, ...]
    metric: str
    """The paper's metric for this set: 'f1' or 'math', as task.metric."""
    difficulty: str
    source: str


class Taken(NamedTuple):
    """The fields taken from a publisher's record; '' for what it does not have."""

    question: str
    answers: Sequence[str]
    difficulty: str = ""
    id: str = ""
    metric: str = ""
    """Only for a set that mixes metrics."""


Record = Mapping[str, object]

Layout = tuple[str, ...]
"""Patterns of files below MANUAL_DIR/NAME that together are a split."""


def take_fields(
    question: str = "question", answer: str = "answer", *, difficulty: str = "", name: str = ""
) -> Callable[[Record], Taken]:
    """A `take` of records with a question, one answer, and perhaps a difficulty and an id."""

    def take(record: Record) -> Taken:
        return Taken(
            text_of(record, question),
            [text_of(record, answer)],
            str(record.get(difficulty) or "") if difficulty else "",  # '' may name a column
            text_of(record, name) if name else "",
        )

    return take


@dataclass(frozen=True)
class Published:
    """A question set, as its publisher distributes it."""

    offered: str
    """Where to get it."""
    files: Mapping[str, Sequence[Layout]]
    """Split -> layouts; the first one that exists is used."""
    take: Callable[[Record], Taken]
    """Takes the fields of a publisher's record; ValueError for one that cannot be used."""
    metric: str = "f1"
    rows: Mapping[str, int] = field(default_factory=dict)
    """Split -> the publisher's number of rows, where known."""
    keep: Mapping[str, Callable[[Record], bool]] = field(default_factory=dict)
    """Split -> whether a record of its files belongs to it; every record for other splits."""


def where_to_get(published: Published, splits: Iterable[str], folder: str | Path) -> str:
    """Where to get the files of splits, and where to put them."""
    wanted = dict.fromkeys(
        " or ".join(" and ".join(layout) for layout in published.files[split]) for split in splits
    )
    return f"get it from {published.offered}, and put {'; '.join(wanted)} into {folder}"


def find_files(
    name: str, published: Published, split: str, manual_dir: str | Path, *, key: str
) -> list[tuple[str, list[Path]]]:
    """(pattern, files) of a split. Raises ValueError, which names where to get missing files."""
    if split not in published.files:
        raise ValueError(
            f"{key}='{name}:{split}': {name} has the splits {', '.join(published.files)}"
        )
    folder = Path(manual_dir) / name
    for layout in published.files[split]:
        files = [(pattern, sorted(folder.glob(pattern))) for pattern in layout]
        if all(paths for _, paths in files):
            return files
    raise ValueError(
        f"{key}='{name}:{split}': its files are missing; "
        f"{where_to_get(published, [split], folder)} (task.dataset.manual_dir)"
    )


def read_rows(
    name: str,
    published: Published,
    split: str,
    manual_dir: str | Path,
    *,
    key: str,
    malformed: str,
    reports: list[LineReport],
) -> Iterator[Row]:
    """The rows of a split in the publisher's order; `reports` gets one report for each pattern.

    Raises:
        ValueError: a file is missing, damaged or without a usable record; or one record is
            malformed and `malformed` is 'fail'.
    """
    parse = _Parser(name, published, split)
    for pattern, paths in find_files(name, published, split, manual_dir, key=key):
        report = LineReport(f"{name}:{split} ({pattern})")
        reports.append(report)
        for path in paths:
            parse.place = f"{path.name}: " if len(paths) > 1 else ""
            for row in read_table(
                path,
                parse,
                malformed=malformed,
                key="task.dataset.malformed",
                report=report,
                one_of_many=True,
            ):
                if row is not None:
                    yield row
        if not report.records:
            raise ValueError(f"{key}='{name}:{split}': no usable record ({report.summary()})")


def read_split(
    name: str, published: Published, split: str, manual_dir: str | Path, *, key: str, malformed: str
) -> tuple[list[Row], list[LineReport], str]:
    """All rows of a split, a report for each pattern, and a note if rows are missing.

    Raises:
        ValueError: see `read_rows`; or there is no row.
    """
    reports: list[LineReport] = []
    rows = list(
        read_rows(name, published, split, manual_dir, key=key, malformed=malformed, reports=reports)
    )
    if not rows:
        raise ValueError(f"{key}='{name}:{split}': its files hold no question of this split")
    expected = published.rows.get(split, len(rows))
    note = "" if expected == len(rows) else f"the publisher's set has {expected}"
    return rows, reports, note


class _Parser:
    """Makes rows of a publisher's records; None for a record of another split."""

    def __init__(self, name: str, published: Published, split: str) -> None:
        self._name, self._published, self._split = name, published, split
        self._keep = published.keep.get(split)
        self._number = 0
        self._ids: set[str] = set()
        self.place = ""

    def __call__(self, record: Record) -> Row | None:
        self._number += 1
        try:
            if self._keep is not None and not self._keep(record):
                return None
            return self._row(self._published.take(record))
        except ValueError as error:
            raise ValueError(f"{self.place}{error}") from None

    def _row(self, taken: Taken) -> Row:
        row_id = f"{self._name}:{taken.id or f'{self._split}-{self._number}'}"
        if row_id in self._ids:
            raise ValueError(f"duplicate id {row_id!r}")
        self._ids.add(row_id)
        return Row(
            id=row_id,
            question=taken.question,
            answers=tuple(dict.fromkeys(taken.answers)),
            metric=taken.metric or self._published.metric,
            difficulty=taken.difficulty,
            source=self._name,
        )
