"""What a published question set is, and its rows from the publisher's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rapo_jax.io.jsonl import LineReport
from rapo_jax.io.tables import read_table


class Row(NamedTuple):
    """The one schema of all sets. `difficulty` is the publisher's level or type, '' without one."""

    id: str
    question: str
    answers: tuple[str, ...]
    metric: str
    """Of the paper for this set: 'f1' or 'math', as task.metric."""
    difficulty: str
    source: str


class Taken(NamedTuple):
    """What a publisher's record says."""

    question: str
    answers: Sequence[str]
    difficulty: str = ""
    id: str = ""
    metric: str = ""
    """Where a set mixes metrics."""


Layout = tuple[str, ...]
"""Patterns of files below MANUAL_DIR/NAME that make a split together."""


@dataclass(frozen=True)
class Published:
    """A question set as its publisher offers it."""

    metric: str
    offered: str
    """Where to get it."""
    files: Mapping[str, Sequence[Layout]]
    """Split -> layouts; the first that is there counts."""
    take: Callable[[Mapping[str, Any]], Taken]
    """A publisher's record -> what it says; ValueError for one that cannot be used."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Split -> rows that the publisher has, where known."""
    keep: Mapping[str, Callable[[Mapping[str, Any]], bool]] = field(default_factory=dict)
    """Split -> which of its files' records belong to it; all of them if it is not here."""


def where_to_get(published: Published, splits: Iterable[str], folder: str | Path) -> str:
    """What to put where, for splits whose files are missing."""
    wanted = dict.fromkeys(
        " or ".join(" and ".join(layout) for layout in published.files[split]) for split in splits
    )
    return f"get it from {published.offered}, and put {'; '.join(wanted)} into {folder}"


def find_files(
    name: str, published: Published, split: str, manual_dir: str | Path, *, key: str
) -> list[tuple[str, list[Path]]]:
    """(pattern, files) of a split. Raises ValueError that says where to get what is missing."""
    if split not in published.files:
        raise ValueError(
            f"{key}='{name}:{split}': {name} has the splits {', '.join(published.files)}"
        )
    folder = Path(manual_dir) / name
    for layout in published.files[split]:
        found = [(pattern, sorted(folder.glob(pattern))) for pattern in layout]
        if all(paths for _, paths in found):
            return found
    raise ValueError(
        f"{key}='{name}:{split}': its files are not there; "
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
    found = find_files(name, published, split, manual_dir, key=key)
    parse = _Parser(name, published, split)
    for pattern, paths in found:
        report = LineReport(f"{name}:{split} ({pattern})")
        reports.append(report)
        for path in paths:
            parse.place = f"{path.name}: " if len(paths) > 1 else ""
            for row in read_table(
                path, parse, malformed=malformed, key="task.dataset.malformed", report=report
            ):
                if row is not None:
                    yield row
        if not report.records:
            raise ValueError(f"{key}='{name}:{split}': no usable record ({report.summary()})")


class _Parser:
    """A publisher's records to rows; None for one that is of another split of the same file."""

    def __init__(self, name: str, published: Published, split: str) -> None:
        self._name, self._published, self._split = name, published, split
        self._keep = published.keep.get(split)
        self._number = 0
        self._ids: set[str] = set()
        self.place = ""

    def __call__(self, record: Mapping[str, Any]) -> Row | None:
        self._number += 1
        try:
            if self._keep is not None and not self._keep(record):
                return None
            taken = self._published.take(record)
            return self._row(taken)
        except ValueError as error:
            raise ValueError(f"{self.place}{error}") from None

    def _row(self, taken: Taken) -> Row:
        own = f"{self._name}:{taken.id or f'{self._split}-{self._number}'}"
        if own in self._ids:
            raise ValueError(f"duplicate id {own!r}")
        self._ids.add(own)
        return Row(
            id=own,
            question=taken.question,
            answers=tuple(dict.fromkeys(taken.answers)),
            metric=taken.metric or self._published.metric,
            difficulty=taken.difficulty,
            source=self._name,
        )
