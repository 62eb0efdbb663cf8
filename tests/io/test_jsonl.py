"""JSON lines: every defect of a file is reported, and no line is lost in silence."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.io.jsonl import (
    MAX_KEPT,
    SHOWN,
    BadLine,
    LineReport,
    number_of,
    read_jsonl,
    text_of,
    texts_of,
)


def read(path, parse=dict, *, malformed="skip", **options):
    report = LineReport(str(path))
    options = {"malformed": malformed, "key": "data.malformed", "report": report} | options
    return list(read_jsonl(path, parse, **options)), report


def written(path, content: bytes):
    path.write_bytes(content)
    return path


GOOD = b'{"a": 1}\n'


@pytest.mark.parametrize("zipped", [False, True])
def test_plain_and_zipped_files_are_read_whatever_they_are_called(tmp_path, zipped):
    content = GOOD + b'\n  \n{"a": 2}\r\n{"a": "\xc3\xbc"}'  # blank lines, CR LF, no last newline
    path = written(tmp_path / "lines.json", gzip.compress(content) if zipped else content)
    records, report = read(path)
    assert records == [{"a": 1}, {"a": 2}, {"a": "ü"}]
    assert (report.lines, report.records, report.malformed) == (3, 3, 0)
    assert report.summary() == f"{path}: 3 records of 3 lines"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1', "not JSON (Expecting ',' delimiter"),
        (b"[1]", "not a JSON object but a list"),
        (b"null", "not a JSON object but null"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 8)"),
        (b'{"a": NaN}', "not JSON (NaN is not finite)"),
        (b'{"a": -Infinity}', "not JSON (-Infinity is not finite)"),
        (b'{"a": "\\ud800"}', "holds a lone surrogate"),
        (b"[" * 100_000, "not JSON (maximum recursion depth"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON (Exceeds the limit"),
        (b"\x00\x01", "not JSON ("),
        (b'{"a": "' + b"x" * 200_000 + b'"}', "longer than 150000 bytes"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_malformed_line_is_reported_with_its_number_and_skipped_or_fatal(tmp_path, line, problem):
    path = written(tmp_path / "lines", GOOD + b"\n" + line + b"\n" + GOOD)
    records, report = read(path, max_line_bytes=150_000)
    assert records == [{"a": 1}, {"a": 1}]
    ((number, reported),) = report.malformed_lines
    assert number == 3 and reported.startswith(problem)
    assert (report.lines, report.records, report.malformed) == (3, 2, 1)
    with pytest.raises(ValueError) as caught:
        read(path, malformed="fail", max_line_bytes=150_000)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 3: {problem}")
    assert text.endswith("fix the line, or set data.malformed='skip'")


def test_a_line_of_fifty_megabytes_is_skipped_without_being_held(tmp_path):
    long = b'{"a": "' + b"x" * 50_000_000 + b'"}\n'
    records, report = read(written(tmp_path / "lines", GOOD + long + GOOD))
    assert records == [{"a": 1}, {"a": 1}]
    assert report.malformed_lines == [BadLine(2, f"longer than {16 << 20} bytes")]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
def test_a_line_is_as_long_as_its_content(tmp_path, ending, excess):
    line = b'{"a": 1}'
    path = written(tmp_path / "lines", GOOD + line + b" " * (12 - len(line)) + ending + GOOD[:0])
    records, report = read(path, max_line_bytes=12 - excess)
    assert (len(records), report.lines) == (2 if excess <= 0 else 1, 2)


def test_a_byte_order_mark_of_utf_8_is_no_content(tmp_path):
    assert read(written(tmp_path / "lines", b"\xef\xbb\xbf" + GOOD))[0] == [{"a": 1}]


@pytest.mark.parametrize("malformed", ["skip", "fail"])
def test_a_cut_off_zipped_file_is_never_a_smaller_one(tmp_path, malformed):
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % i for i in range(10_000)))
    for content in (whole[: len(whole) // 2], whole[:-4], whole[:3], whole[:2000] + b"?" * 200):
        path = written(tmp_path / "lines.gz", content)
        with pytest.raises(ValueError, match=r"lines.gz: damaged after line \d+ .*get the file"):
            read(path, malformed=malformed)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (gzip.compress(b"", mtime=0), "it is empty"),
        (b"a,b\n1,2\n", "2 malformed .line 1: not JSON"),
        ('{"a": 1}'.encode("utf-16"), "1 malformed .line 1: not UTF-8"),
    ],
)
def test_a_file_without_a_usable_line_is_an_error(tmp_path, content, why):
    with pytest.raises(ValueError, match=f"lines: no usable line .{why}.*is it the right file"):
        read(written(tmp_path / "lines", content))


def test_a_path_that_is_no_file_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="cannot be read"):
            read(path)


def test_a_value_error_of_the_parser_is_a_malformed_line_and_other_errors_are_raised(tmp_path):
    path = written(tmp_path / "lines", GOOD + b'{"b": 1}\n{"a": "x"}\n')
    records, report = read(path, lambda record: number_of(record, "a"))
    assert records == [1.0]
    assert report.malformed_lines == [
        BadLine(2, "a is missing (there are b)"),
        BadLine(3, "a is no number but text"),
    ]
    with pytest.raises(KeyError):  # a mistake of ours is not the user's file
        read(path, lambda record: record["a"])


def test_all_malformed_lines_are_counted_and_the_first_are_kept(tmp_path):
    bad = MAX_KEPT + 5
    _, report = read(written(tmp_path / "lines", b"x\n" * bad + GOOD))
    assert report.malformed == bad and len(report.malformed_lines) == MAX_KEPT
    summary = report.summary()
    assert f"1 records of {bad + 1} lines, {bad} malformed (line 1: not JSON" in summary
    assert summary.count("; line") == SHOWN - 1 and summary.endswith("; …)")


def test_an_unknown_treatment_of_malformed_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data.malformed='ignore': expected one of skip, fail"):
        read(written(tmp_path / "lines", GOOD), malformed="ignore")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (text_of, 3, "x is no text but a number"),
        (text_of, " \n", "x is blank"),
        (text_of, None, "x is no text but null"),
        (number_of, True, "x is no number but true or false"),
        (number_of, "3", "x is no number but text"),
        (number_of, 10**400, "x is not finite"),
        (texts_of, [], "x is no list of texts but a list"),
        (texts_of, ["a", 3], "x is no text but a number"),
        (texts_of, {"a": "b"}, "x is no list of texts but an object"),
        (texts_of, None, "x is no text but null"),
    ],
)
def test_a_field_of_another_type_is_refused_with_its_type(field, value, problem):
    with pytest.raises(ValueError) as caught:
        field({"x": value}, "x")
    assert str(caught.value) == problem
    with pytest.raises(ValueError, match="x is missing .there are y, z"):
        field({"z": 1, "y": value}, "x")


def test_fields_of_the_right_type_are_given_back():
    record = {"text": "a", "number": 3, "texts": ["a", "b"]}
    assert text_of(record, "text") == "a"
    assert number_of(record, "number") == 3.0
    assert [texts_of(record, name) for name in ("text", "texts")] == [["a"], ["a", "b"]]


@given(st.lists(st.one_of(st.binary(max_size=40), st.just(GOOD.strip())), max_size=12))
def test_any_bytes_give_records_and_counts_that_add_up_or_an_error(tmp_path_factory, lines):
    path = written(tmp_path_factory.mktemp("any") / "lines", b"\n".join(lines))
    try:
        records, report = read(path)
    except ValueError:
        return
    assert report.lines == report.records + report.malformed
    assert len(records) == report.records >= 1
    assert all(json.dumps(record) for record in records)
