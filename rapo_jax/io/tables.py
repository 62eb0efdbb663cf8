"""Reader of records in the forms that data sets come in, as strict as `jsonl.read_jsonl`.

Parquet, CSV with a header, a JSON array of objects, one JSON object, or JSON lines.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rapo_jax.io.jsonl import MALFORMED, LineReport, read_jsonl

PARQUET_MAGIC = b"PAR1"
PARQUET_ROWS = 1024
"""Read at a time."""

Record = TypeVar("Record")
Row = Mapping[str, Any] | str
"""A row, or what is wrong with it."""


def read_table(
    path: str | Path,
    parse: Callable[[Mapping[str, Any]], Record],
    *,
    malformed: str,
    key: str,
    report: LineReport,
) -> Iterator[Record]:
    """The records of a file in any of the forms; what the report calls lines are its rows.

    `parse`, `malformed` and `key` are those of `read_jsonl`. A report may go through several files.

    Raises:
        ValueError: the file is missing, damaged or without any record (a file that is one object
            may be malformed, as any row of a table may); or a row is malformed and `malformed` is
            'fail'.
    """
    if malformed not in MALFORMED:
        raise ValueError(f"{key}={malformed!r}: expected one of {', '.join(MALFORMED)}")
    rows = _rows(Path(path))
    if rows is None:
        yield from read_jsonl(path, parse, malformed=malformed, key=key, report=report)
        return
    before, lines = report.records, report.lines
    for number, row in enumerate(rows, start=1):
        report.lines += 1
        try:
            if isinstance(row, str):
                raise ValueError(row)
            record = parse(row)
        except ValueError as error:
            if malformed == "fail":
                raise ValueError(
                    f"{path}, row {number}: {error}; mend the row, or set {key}='skip'"
                ) from None
            report.tell(number, str(error))
            continue
        report.records += 1
        yield record
    taken = report.lines - lines
    single = isinstance(rows, tuple)
    if not taken or (report.records == before and not single):
        why = "it has no rows" if not taken else report.summary().partition(", ")[2]
        raise ValueError(f"{path}: no usable row ({why}); is it the right file?")


def _rows(path: Path) -> Iterable[Row] | None:
    """The rows of a file, None for JSON lines and for what cannot be opened."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if start.startswith(PARQUET_MAGIC):
        return _parquet(path)
    if path.suffix == ".csv":
        return _csv(path)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return _array(path)
    return _object(path) if path.suffix == ".json" else None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    rows = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    rows += 1
                    yield row
            wanted = file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        told = str(error).splitlines()[0]
        raise ValueError(f"{path}: damaged after row {rows} ({told}); get the file again") from None
    if rows != wanted:
        raise ValueError(f"{path}: {rows} rows, its footer says {wanted}; get the file again")


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for cells in reader:
                rows += 1
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    yield f"{len(cells)} cells, the header has {len(header)}"
                else:
                    yield dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: damaged after row {rows} ({error}); get the file again"
        ) from None


def _array(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); get the file again") from None
    return [_checked(row) for row in rows]


def _object(path: Path) -> tuple[Row] | None:
    """A file that is one object over several lines; None if it is none, so JSON lines."""
    try:
        row = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return (_checked(row),) if isinstance(row, dict) else None


def _checked(row: Any) -> Row:
    if not isinstance(row, dict):
        return "not a JSON object"
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate (half a character)"
    return row
