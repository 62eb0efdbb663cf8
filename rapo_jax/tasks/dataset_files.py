"""Questions from files: JSON lines or Parquet with `question` and `answer` or `answers`.

A record may also hold `id` (unique in its set), `source` (else the file's name) and `kind`, by
which accuracy is reported (else the source). Without `id`, or with a blank one, a question is named
by its text, as in the Step-Trace Buffer; a repeated text gets a number.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rapo_jax.io.jsonl import LineReport, text_of
from rapo_jax.io.tables import read_table
from rapo_jax.tasks.published import SETS, Row, read_split
from rapo_jax.tasks.schema import Question

_FIRST = re.compile(r"\[:(\d+)\]$")
_MAX_PLAIN = 1e16
"""From here on a float is written with an exponent."""


class SetRead(NamedTuple):
    """Questions, and a report of each file: counts, malformed lines, a summary for people."""

    questions: list[Question]
    files: list[Mapping[str, object]]


class PartRead(NamedTuple):
    """The same of one file or published set, with the metric of each question ('' for a file)."""

    questions: list[Question]
    metrics: list[str]
    files: list[Mapping[str, object]]


def file_info(report: LineReport, *, note: str = "") -> Mapping[str, object]:
    """A file's report, as the manifest has it."""
    return {"path": report.path, **report.counts(), "summary": report.summary() + note}


def read_set(wanted: str, *, key: str, manual_dir: str, malformed: str) -> SetRead:
    """The questions that the config key `key` asks for.

    `wanted` names files and published sets, separated by commas, such as
    'gsm8k:train,mine.jsonl[:200]'; [:200] takes the first 200 of one.

    Raises:
        ValueError: something is missing, damaged, or without a usable record; an id occurs twice;
            a record is malformed and `malformed` is 'fail'.
    """
    parts = [part.strip() for part in wanted.split(",") if part.strip()]
    if not parts:
        raise ValueError(
            f"{key}={wanted!r}: name a file of questions (JSON lines or Parquet with question and "
            "answer) or a published set, such as 'gsm8k:train'"
        )
    result = SetRead([], [])
    for part in parts:
        name, first = split_first(part)
        read = read_part(name, first, key=key, manual_dir=manual_dir, malformed=malformed)
        result.questions.extend(read.questions)
        result.files.extend(read.files)
    ids = Counter(question.id for question in result.questions)
    if ids and len(ids) < len(result.questions):
        raise ValueError(
            f"{key}={wanted!r}: two of its files hold a question with the id "
            f"{ids.most_common(1)[0][0]!r}; give their records different ids, or leave one file out"
        )
    return result


def split_first(wanted: str) -> tuple[str, int | None]:
    """(NAME, N) of 'NAME[:N]'; N is None where all questions are wanted."""
    first = _FIRST.search(wanted)
    return (wanted[: first.start()], int(first[1])) if first else (wanted, None)


def read_part(
    name: str, first: int | None, *, key: str, manual_dir: str, malformed: str
) -> PartRead:
    """The questions, or the first ones, of a file or of a published set's split (SET:SPLIT).

    Errors are those of `read_set`.
    """
    part = _read_all(name, key=key, manual_dir=manual_dir, malformed=malformed)
    count = len(part.questions)
    if first is not None and not 1 <= first <= count:
        raise ValueError(
            f"{key}='{name}[:{first}]': {name} has {count} questions; take from 1 to all of them"
        )
    return part._replace(questions=part.questions[:first], metrics=part.metrics[:first])


def _read_all(name: str, *, key: str, manual_dir: str, malformed: str) -> PartRead:
    if Path(name).is_file():
        report = LineReport(name)
        try:
            questions = list(read_user_file(name, malformed=malformed, report=report))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return PartRead(questions, [""] * len(questions), [file_info(report)])
    set_name, _, split = name.partition(":")
    if split and set_name in SETS:
        rows, reports, note = read_split(
            set_name, SETS[set_name], split, manual_dir, key=key, malformed=malformed
        )
        files = [file_info(report, note=f"; {note}" if note else "") for report in reports]
        return PartRead([_as_question(row) for row in rows], [row.metric for row in rows], files)
    near = difflib.get_close_matches(set_name, SETS, n=1)
    hint = f"did you mean {near[0]!r}? " if near and split else ""
    raise ValueError(
        f"{key}={name!r}: there is no such file, and no such published set; {hint}the sets are "
        f"{', '.join(SETS)}, each with its split, as in 'gsm8k:train'"
    )


def _as_question(row: Row) -> Question:
    """A published row; its kind is the set and the difficulty, if it has one."""
    return Question(
        id=row.id,
        question=row.question,
        answers=row.answers,
        kind=f"{row.source}/{row.difficulty}" if row.difficulty else row.source,
        source=row.source,
    )


def read_user_file(path: str | Path, *, malformed: str, report: LineReport) -> Iterator[Question]:
    """The questions of one file of a user. Raises ValueError, see `read_table`."""
    parse = _Parser(Path(path).name)
    return read_table(path, parse, malformed=malformed, key="task.dataset.malformed", report=report)


class _Parser:
    """Parses the records of one file; refuses a repeated id."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._ids: set[str] = set()
        self._texts: Counter[str] = Counter()

    def __call__(self, record: Mapping[str, object]) -> Question:
        question = text_of(record, "question")
        answers = answers_of(record)
        name = self._name(record, question)
        source = text_of(record, "source") if record.get("source") else self._source
        kind = text_of(record, "kind") if record.get("kind") else source
        self._ids.add(name)
        return Question(id=name, question=question, answers=answers, kind=kind, source=source)

    def _name(self, record: Mapping[str, object], question: str) -> str:
        name = record.get("id")
        if name is None or (isinstance(name, str) and not name.strip()):
            digest = hashlib.sha256(question.strip().encode()).hexdigest()[:16]
            self._texts[digest] += 1
            again = self._texts[digest]
            return f"text:{digest}" + (f"#{again}" if again > 1 else "")
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError("id is no text and no whole number")
        if str(name) in self._ids:
            raise ValueError(f"duplicate id {str(name)!r}")
        return str(name)


def answers_of(record: Mapping[str, object]) -> tuple[str, ...]:
    """The gold answers of a record: a text, a number or a list of them, each once, in order.

    A cell `answers` of a table may be a JSON list of texts.

    Raises:
        ValueError: there are none, there are both `answer` and `answers`, or one is blank.
    """
    names = [name for name in ("answers", "answer") if record.get(name) is not None]
    if len(names) != 1:
        problem = "both answer and answers are there" if names else "no answer and no answers"
        raise ValueError(f"{problem} (there are {', '.join(sorted(record)) or 'no keys'})")
    value = record[names[0]]
    if names == ["answers"] and isinstance(value, str) and value.startswith('["'):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError(f"{names[0]} is an empty list")
    return tuple(dict.fromkeys(_answer(item, names[0]) for item in values))


def _answer(value: object, name: str) -> str:
    """A text, or a number; whole numbers of a float column read as integers."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_PLAIN:
        return str(int(value))
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return text_of({name: value}, name)
