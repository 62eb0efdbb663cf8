"""Records from Parquet, CSV, JSON arrays, JSON objects and JSON lines."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from rapo_jax.io.jsonl import LineReport, text_of
from rapo_jax.io.tables import read_table

ROWS = [{"word": "one"}, {"word": "zwei"}, {"word": "três"}]


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_csv(path, rows):
    path.write_text("word\n" + "".join(f'"{row["word"]}"\n' for row in rows))


def write_array(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS = {"parquet": write_parquet, "csv": write_csv, "json": write_array, "jsonl": write_lines}


def read(path, *, malformed="skip", parse=lambda record: text_of(record, "word")):
    report = LineReport(str(path))
    found = list(read_table(path, parse, malformed=malformed, key="task.x", report=report))
    return found, report


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_records_in_order(tmp_path, form):
    path = tmp_path / f"a.{form}"
    WRITERS[form](path, ROWS)
    found, report = read(path)
    assert found == ["one", "zwei", "três"]
    assert (report.lines, report.records, report.malformed) == (3, 3, 0)


@pytest.mark.parametrize("form", WRITERS)
def test_a_bad_row_is_counted_with_its_number_or_ends_the_reading(tmp_path, form):
    path = tmp_path / f"a.{form}"
    WRITERS[form](path, [*ROWS[:1], {"word": " "}, *ROWS[1:]])
    found, report = read(path)
    assert found == ["one", "zwei", "três"]
    assert [bad.number for bad in report.malformed_lines] == [2]  # of a CSV file without its header
    assert "word is blank" in report.summary()
    with pytest.raises(ValueError, match="(row|line) 2: word is blank; .*task.x='skip'"):
        read(path, malformed="fail")


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_of_another_kind_of_records_is_refused_with_what_it_holds(tmp_path, form):
    path = tmp_path / f"a.{form}"
    WRITERS[form](path, ROWS)
    with pytest.raises(ValueError, match="no usable .*other is missing .there are word"):
        read(path, parse=lambda record: text_of(record, "other"))


def test_one_object_over_several_lines_is_one_record(tmp_path):
    path = tmp_path / "1.json"
    path.write_text(json.dumps(ROWS[0], indent=4))
    assert read(path)[0] == ["one"]


def test_json_lines_may_be_called_json(tmp_path):
    path = tmp_path / "a.json"
    write_lines(path, ROWS)
    assert read(path)[0] == ["one", "zwei", "três"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.parquet", b"PAR1 and no more", "damaged after row 0"),
        ("a.json", b'[{"word": "one"}, {"word', "not JSON"),
        ("a.csv", b"word\n\xff\xfe\n", "damaged after row 0"),
        ("a.csv", b'word\n"open\n', "damaged after row"),
        ("a.csv", b"word\n", "no usable row .it is empty"),
        ("a.csv", b"", "no usable row .it is empty"),
        ("a.json", b"[]", "no usable row .it is empty"),
        ("a.jsonl", b"", "no usable line .it is empty"),
        ("a.json", b'[3, "x", {"word": "\\ud800"}]', "not a JSON object.*lone surrogate"),
    ],
)
def test_a_damaged_or_empty_file_is_an_error_and_never_a_smaller_data_set(
    tmp_path, name, content, problem
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a.parquet: cannot be read"):
        read(tmp_path / "a.parquet")


def test_a_csv_row_with_a_cell_too_many_is_a_bad_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("word,other\none,1\ntwo,2,3\n\n")
    found, report = read(path)
    assert found == ["one"]
    assert [tuple(bad) for bad in report.malformed_lines] == [(2, "3 cells, the header has 2")]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_report_may_cover_several_files_and_each_must_hold_a_record(tmp_path, form):
    paths = [tmp_path / f"{name}.{form}" for name in ("a", "b")]
    for path, rows in zip(paths, (ROWS, []), strict=True):
        WRITERS[form](path, rows)
    report = LineReport("both")
    options = {"malformed": "skip", "key": "task.x", "report": report}
    assert len(list(read_table(paths[0], dict, **options))) == 3
    with pytest.raises(ValueError, match="no usable (row|line) .it is empty"):
        list(read_table(paths[1], dict, **options))


LONG = "x" * 200_000
BOMBS = {  # each of some hundred bytes
    "a text in every row": {"word": [LONG] * 1024},
    "a text in every list": {"word": ["one"], "words": [[LONG] * 1024]},
    "a text in every structure": {"word": ["one"] * 400, "all": [{"text": LONG}] * 400},
    "a list of nothing": {"word": ["one"], "words": [[None] * 5_000_000]},
    "rows of nothing": {"word": pyarrow.nulls(5_000_000, pyarrow.string())},
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_parquet_file_that_holds_very_much_is_refused_before_it_is_read(
    tmp_path, kind, monkeypatch
):
    path, read_rows = tmp_path / "bomb.parquet", []
    pyarrow.parquet.write_table(pyarrow.table(BOMBS[kind]), path, compression="zstd")
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"bomb\.parquet: its \d+ bytes hold more than 67108864"):
        read(path, parse=read_rows.append)
    assert read_rows == []


def test_repeated_texts_nested_ones_and_several_groups_of_a_parquet_file_are_read(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [
        {
            "word": f"w{n // 3}",
            "all": [f"a{n // 2}", "long " * 200 + str(n)],  # too many for a dictionary
            "of": {"text": f"t{n // 9}"},
            "n": n,
        }
        for n in range(3000)
    ]
    rows[5] |= {"all": None, "of": None, "word": None}
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, row_group_size=1600, compression="zstd")
    found, _ = read(path, parse=dict)
    assert found == rows
