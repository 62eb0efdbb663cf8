"""JSON lines: a reader, plain or gzip, that reports every line it cannot use, and an appender.

A malformed line is counted with its number and its problem and skipped, or ends the reading, as
the caller chooses. A file that is damaged as a whole (missing, cut-off gzip, no usable line) always
ends it: a smaller data set must never pass for the whole one.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, TypeVar, cast

from rapo_jax.io.files import Json

MALFORMED = ("skip", "fail")
MAX_LINE_BYTES = 16 << 20
MAX_KEPT = 1000
"""Malformed lines whose numbers and problems are kept; all of them are counted."""
SHOWN = 5
GZIP_MAGIC = b"\x1f\x8b"
LARGEST = 1e30
"""Numbers beyond it are no measurement: sums, axes and percentages of them would overflow."""
UTF8_BOM = b"\xef\xbb\xbf"

Record = TypeVar("Record")
JsonObject = Mapping[str, Json]
Row = JsonObject | str
"""A row, or what is wrong with it."""


class BadLine(NamedTuple):
    """A malformed line: its number, counted from 1, and what is wrong with it."""

    number: int
    problem: str


@dataclass
class LineReport:
    """Counts of a file's lines (or of a table's rows); blank lines are not counted."""

    path: str
    lines: int = 0
    records: int = 0
    malformed: int = 0
    malformed_lines: list[BadLine] = field(default_factory=list)
    """The first malformed lines, up to MAX_KEPT."""

    def add_malformed(self, number: int, problem: str) -> None:
        self.malformed += 1
        if len(self.malformed_lines) < MAX_KEPT:
            self.malformed_lines.append(BadLine(number, problem))

    def counts(self) -> dict[str, Json]:
        """The counts and the malformed lines, as a manifest has them."""
        return {
            "lines": self.lines,
            "records": self.records,
            "malformed": self.malformed,
            "malformed_lines": [list(bad) for bad in self.malformed_lines],
        }

    def summary(self) -> str:
        """One line of text, with the first malformed lines."""
        text = f"{self.path}: {self.records} records of {self.lines} lines"
        if not self.malformed:
            return text
        shown = self.malformed_lines[:SHOWN]
        first = "; ".join(f"line {number}: {problem}" for number, problem in shown)
        more = "; …" if self.malformed > SHOWN else ""
        return f"{text}, {self.malformed} malformed ({first}{more})"


def read_jsonl(
    path: str | Path,
    parse: Callable[[JsonObject], Record],
    *,
    malformed: str,
    key: str,
    report: LineReport,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Record]:
    """The records of a file, one line at a time; `report` is complete after the last one.

    `parse` makes a record of a line's object, or raises ValueError with what is wrong with it.
    `malformed` is 'skip' or 'fail', the value of the config key `key`. A report may be used for
    several files.

    Raises:
        ValueError: the file is missing, damaged or without any record, or a line is malformed and
            `malformed` is 'fail'.
    """
    rows = _rows(path, max_line_bytes)
    return read_rows(
        rows, parse, path=path, unit="line", malformed=malformed, key=key, report=report
    )


def read_rows(
    rows: Iterable[tuple[int, Row]],
    parse: Callable[[JsonObject], Record],
    *,
    path: str | Path,
    unit: str,
    malformed: str,
    key: str,
    report: LineReport,
    may_lack_records: bool = False,
) -> Iterator[Record]:
    """The records of numbered rows of a file; see `read_jsonl`. Errors call a row `unit`."""
    if malformed not in MALFORMED:
        raise ValueError(f"{key}={malformed!r}: expected one of {', '.join(MALFORMED)}")
    lines, records = report.lines, report.records
    for number, row in rows:
        report.lines += 1
        try:
            if isinstance(row, str):
                raise ValueError(row)
            record = parse(row)
        except ValueError as error:
            if malformed == "fail":
                raise ValueError(
                    f"{path}, {unit} {number}: {error}; fix the {unit}, or set {key}='skip'"
                ) from None
            report.add_malformed(number, str(error))
            continue
        report.records += 1
        yield record
    if report.records == records and not may_lack_records:
        why = "it is empty" if report.lines == lines else report.summary().partition(", ")[2]
        raise ValueError(f"{path}: no usable {unit} ({why}); is it the right file?")


def append_lines(path: Path, text: str, *, sync: bool = False) -> None:
    """Appends whole lines, all of them or none; a line that a kill cut short is closed off first.

    With `sync` they are on disk when this returns.

    Raises:
        ValueError: they cannot be written, as on a full disk; the file is as it was.
    """
    try:
        with open(path, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            whole = file.read(1) in (b"", b"\n")
            left = memoryview(text.encode() if whole else b"\n" + text.encode())
            try:
                while left:
                    left = left[file.write(left) :]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space, or "
            "fix the permissions of its folder, and start again to continue"
        ) from None


def text_of(record: JsonObject, name: str) -> str:
    """A text field; ValueError if it is missing, no text or blank."""
    text = _field(record, name)
    if not isinstance(text, str):
        raise ValueError(f"{name} is no text but {_kind(text)}")
    if not text.strip():
        raise ValueError(f"{name} is blank")
    return text


def number_of(record: JsonObject, name: str) -> float:
    """A number field; ValueError if it is missing, no number or not finite."""
    number = _field(record, name)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{name} is no number but {_kind(number)}")
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{name} is not finite")
    return value


def parse_line(line: str | bytes) -> JsonObject | None:
    """The object on a line of JSON, or None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def as_number(value: object) -> float | None:
    """A number up to LARGEST, or None for anything else in a file."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None


def texts_of(record: JsonObject, name: str) -> list[str]:
    """A text or a list of texts as a list; ValueError if it is anything else or empty."""
    value = record.get(name)
    if isinstance(value, str) or value is None:
        return [text_of(record, name)]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is no list of texts but {_kind(value)}")
    return [text_of({name: item}, name) for item in value]


def _field(record: JsonObject, name: str) -> Json:
    if name not in record:
        raise ValueError(f"{name} is missing (there are {', '.join(sorted(record)) or 'none'})")
    return record[name]


def _kind(value: Json) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _rows(path: str | Path, max_line_bytes: int) -> Iterator[tuple[int, Row]]:
    with _open(path) as file:
        for number, line in _lines(path, file, max_line_bytes):
            if line is None:
                yield number, f"longer than {max_line_bytes} bytes"
            elif line.strip():
                yield number, _object(line)


def _open(path: str | Path) -> IO[bytes]:
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP_MAGIC  # the name may mislead
        return cast(IO[bytes], gzip.open(path)) if zipped else open(path, "rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


def _lines(path: str | Path, file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number, bytes) of each line; None for one that is too long, which is never held whole."""
    number = 0
    try:
        while line := file.readline(max_bytes + 2):  # room for \r\n
            number += 1
            too_long = len(line.rstrip(b"\r\n")) > max_bytes
            rest = line
            while too_long and rest and not rest.endswith(b"\n"):
                rest = file.readline(1 << 20)
            line = line.removeprefix(UTF8_BOM) if number == 1 else line
            yield number, None if too_long else line
    except (EOFError, zlib.error, OSError) as error:  # OSError: gzip's own, too
        raise ValueError(
            f"{path}: damaged after line {number} ({error}); get the file again"
        ) from None


def _object(line: bytes) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start + 1})"
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(value, dict):
        return f"not a JSON object but {_kind(value)}"
    return checked(value) if "\\u" in text else value


def checked(row: dict[str, Json]) -> Row:
    """The row, or that it holds half a character, which cannot be written as UTF-8."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate (half a character)"
    return row


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not finite")
