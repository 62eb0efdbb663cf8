"""Reader of records from Parquet, CSV with a header, a JSON array, one JSON object or JSON lines.

As strict as `jsonl.read_jsonl`. And a writer of Markdown.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rapo_jax.io.jsonl import JsonObject, LineReport, Record, Row, checked, read_jsonl, read_rows

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

PARQUET_MAGIC = b"PAR1"
PARQUET_ROWS = 1024
"""Read at a time."""
PARQUET_ROOM = 64 << 20
PARQUET_RATIO = 100
"""A Parquet file may hold this many bytes, or this many times its size, if that is more."""
VALUE_BYTES = 16
"""Counted for each value, a missing one too."""


def read_table(
    path: str | Path,
    parse: Callable[[JsonObject], Record],
    *,
    malformed: str,
    key: str,
    report: LineReport,
    one_of_many: bool = False,
) -> Iterator[Record]:
    """The records of a file in any of the forms; arguments and errors are those of `read_jsonl`.

    The report counts rows as lines. Where each of many files is one object, that may be malformed.
    """
    rows = _rows(Path(path))
    if rows is None:
        return read_jsonl(path, parse, malformed=malformed, key=key, report=report)
    return read_rows(
        enumerate(rows, start=1),
        parse,
        path=path,
        unit="row",
        malformed=malformed,
        key=key,
        report=report,
        may_lack_records=one_of_many and isinstance(rows, tuple),
    )


def _rows(path: Path) -> Iterable[Row] | None:
    """The rows of a file; None for JSON lines and for a file that cannot be opened."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if start.startswith(PARQUET_MAGIC):
        return _parquet(path)
    if path.suffix.lower() == ".csv":
        return _csv(path)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return _array(path)
    return _object(path) if path.suffix == ".json" else None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    rows = 0
    try:
        texts, room = _parquet_texts(path)
        # Texts as dictionaries: a text that occurs in many rows is in memory once until it is due.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in _batches(file):
                room -= sum(map(_text_bytes, batch.columns))
                if room < 0:
                    raise _too_large(path)
                for row in batch.to_pylist():
                    rows += 1
                    yield row
            wanted = file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path}: damaged after row {rows} ({why}); get the file again") from None
    if rows != wanted:
        raise ValueError(f"{path}: {rows} rows, its footer says {wanted}; get the file again")


def _batches(file: pyarrow.parquet.ParquetFile) -> Iterator[pyarrow.RecordBatch]:
    for group in range(file.num_row_groups):  # each has dictionaries of its own
        yield from file.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group])


def _parquet_texts(path: Path) -> tuple[list[str], int]:
    """The columns of texts, and the bytes that these may have. Raises ValueError for too much."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        m = file.metadata
        chunks = [
            m.row_group(r).column(c) for r in range(m.num_row_groups) for c in range(m.num_columns)
        ]
    room = max(PARQUET_ROOM, PARQUET_RATIO * path.stat().st_size)
    values = VALUE_BYTES * sum(chunk.num_values for chunk in chunks)
    if values + sum(chunk.total_uncompressed_size for chunk in chunks) > room:
        raise _too_large(path)
    texts = {chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"}
    return sorted(texts), room - values


def _text_bytes(array: pyarrow.Array) -> int:
    """Bytes of the texts of a column, repeated ones as often as they occur."""
    import pyarrow
    import pyarrow.compute

    if isinstance(array, pyarrow.DictionaryArray):
        length = pyarrow.compute.binary_length(array.dictionary)
        return pyarrow.compute.sum(length.take(array.indices)).as_py() or 0
    if isinstance(array, pyarrow.StructArray):
        return sum(map(_text_bytes, array.flatten()))
    nested = pyarrow.ListArray | pyarrow.LargeListArray | pyarrow.FixedSizeListArray
    return _text_bytes(array.flatten()) if isinstance(array, nested) else 0


def _too_large(path: Path) -> ValueError:
    size = path.stat().st_size
    return ValueError(
        f"{path}: its {size} bytes hold more than {max(PARQUET_ROOM, PARQUET_RATIO * size)} bytes "
        "of texts and values; if they are meant to, write it as JSON lines"
    )


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
    return [checked(row) if isinstance(row, dict) else "not a JSON object" for row in rows]


def _object(path: Path) -> tuple[Row] | None:
    """A file that is one object; None if it is not, so that it is read as JSON lines."""
    try:
        row = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return (checked(row),) if isinstance(row, dict) else None


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
