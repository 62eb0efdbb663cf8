"""The one reader of JSON lines, plain or gzip: what a file holds is either read or told.

A line that cannot be used is counted with its number and its problem and skipped, or ends the
reading, as the caller chooses. A file that is damaged as a whole (missing, cut-off gzip, not one
usable line) always ends it: a smaller data set must never pass for the whole one.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

MALFORMED = ("skip", "fail")
MAX_LINE_BYTES = 16 << 20
MAX_TOLD = 1000
"""Malformed lines whose numbers are kept; all of them are counted."""
SHOWN = 5
GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"

Record = TypeVar("Record")


class BadLine(NamedTuple):
    """Its number, counted from 1, and what is wrong with it."""

    number: int
    problem: str


@dataclass
class LineReport:
    """What came of a file's lines; blank lines are passed over and not counted."""

    path: str
    lines: int = 0
    records: int = 0
    malformed: int = 0
    told: list[BadLine] = field(default_factory=list)
    """The first malformed lines, up to MAX_TOLD."""

    def tell(self, number: int, problem: str) -> None:
        self.malformed += 1
        if len(self.told) < MAX_TOLD:
            self.told.append(BadLine(number, problem))

    def summary(self) -> str:
        """One line for people, with the first malformed lines."""
        text = f"{self.path}: {self.records} records of {self.lines} lines"
        if not self.malformed:
            return text
        first = "; ".join(f"line {number}: {problem}" for number, problem in self.told[:SHOWN])
        more = "; …" if self.malformed > SHOWN else ""
        return f"{text}, {self.malformed} malformed ({first}{more})"


def read_jsonl(
    path: str | Path,
    parse: Callable[[Mapping[str, Any]], Record],
    *,
    malformed: str,
    key: str,
    report: LineReport,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Record]:
    """The records of a file, one line at a time; `report` is complete when the last one is taken.

    `parse` makes a record of a line's object, or raises ValueError with what is wrong with it.
    `malformed` is 'skip' or 'fail', the value of the config key `key`, which errors name.

    Raises:
        ValueError: the file is missing, damaged or without any record, or a line is malformed and
            `malformed` is 'fail'.
    """
    if malformed not in MALFORMED:
        raise ValueError(f"{key}={malformed!r}: expected one of {', '.join(MALFORMED)}")
    with _open(path) as file:
        for number, line in _lines(path, file, max_line_bytes):
            if line is not None and not line.strip():
                continue
            report.lines += 1
            try:
                if line is None:
                    raise ValueError(f"longer than {max_line_bytes} bytes")
                record = parse(_object(line))
            except ValueError as error:
                if malformed == "fail":
                    raise ValueError(
                        f"{path}, line {number}: {error}; mend the line, or set {key}='skip'"
                    ) from None
                report.tell(number, str(error))
                continue
            report.records += 1
            yield record
    if not report.records:
        why = "it is empty" if not report.lines else report.summary().partition(", ")[2]
        raise ValueError(f"{path}: no usable line ({why}); is it the right file?")


def text_of(record: Mapping[str, Any], name: str) -> str:
    """A text field; ValueError if it is missing, no text or blank."""
    text = record.get(name)
    if name not in record:
        raise ValueError(f"{name} is missing (there are {', '.join(sorted(record)) or 'none'})")
    if not isinstance(text, str):
        raise ValueError(f"{name} is no text but {_kind(text)}")
    if not text.strip():
        raise ValueError(f"{name} is blank")
    return text


def number_of(record: Mapping[str, Any], name: str) -> float:
    """A number field; ValueError if it is missing, no number or not finite."""
    number = record.get(name)
    if name not in record:
        raise ValueError(f"{name} is missing (there are {', '.join(sorted(record)) or 'none'})")
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{name} is no number but {_kind(number)}")
    try:
        found = float(number)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} is not finite")
    return found


def texts_of(record: Mapping[str, Any], name: str) -> list[str]:
    """A text or a list of texts as a list; ValueError if it is anything else or empty."""
    value = record.get(name)
    if isinstance(value, str) or value is None:
        return [text_of(record, name)]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is no list of texts but {_kind(value)}")
    return [text_of({name: item}, name) for item in value]


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _open(path: str | Path) -> IO[bytes]:
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP_MAGIC  # by content: names lie
        return cast(IO[bytes], gzip.open(path)) if zipped else open(path, "rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


def _lines(path: str | Path, file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number, bytes) of each line, None for one that is too long, which never fills the memory."""
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


def _object(line: bytes) -> Mapping[str, Any]:
    """The JSON object of a line; ValueError says what it is instead."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from None
    try:
        record = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {_kind(record)}")
    if "\\u" in text:
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("holds a lone surrogate (half a character)") from None
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not finite")
