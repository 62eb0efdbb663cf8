"""Published question sets: every one is read from its publisher's layout into one schema."""

from __future__ import annotations

import json

import pytest

from rapo_jax.scoring.maths import math_equal
from rapo_jax.tasks import METRICS
from rapo_jax.tasks.dataset_files import read_set
from rapo_jax.tasks.published import SETS, read_rows
from rapo_jax.tasks.published.training import repaired
from rapo_jax.tasks.published.web import decrypted
from tests.tasks.published.fixtures import (
    CANARY,
    FIXTURES,
    GAIA,
    WALK,
    encrypted,
    gsm,
    lines,
    sheet,
    task,
)


def put(folder, fixture):
    fixture.write(folder / fixture.set / fixture.file, fixture.records)
    return str(folder)


def read(name, split, manual_dir, *, malformed="skip"):
    reports = []
    found = read_rows(
        name, SETS[name], split, manual_dir, key="task.x", malformed=malformed, reports=reports
    )
    return list(found), reports


@pytest.mark.parametrize("fixture", FIXTURES, ids=[f"{f.set}:{f.split}" for f in FIXTURES])
def test_a_set_is_read_from_its_publishers_layout_in_order(tmp_path, fixture):
    rows, reports = read(fixture.set, fixture.split, put(tmp_path, fixture), malformed="fail")
    found = [(row.question, row.answers, row.metric, row.difficulty) for row in rows]
    assert found == list(fixture.rows)
    assert {row.source for row in rows} == {fixture.set}
    assert len({row.id for row in rows}) == len(rows)
    assert sum(report.lines for report in reports) == len(fixture.records)


def test_every_set_has_a_fixture_and_says_where_it_is_offered():
    assert {fixture.set for fixture in FIXTURES} == set(SETS)
    assert len(SETS) == 13 + 3  # WebWalkerQA serves as two of the paper's fourteen suites
    for published in SETS.values():
        assert published.metric in METRICS and published.offered
        assert set(published.rows) <= set(published.files)
        assert set(published.keep) <= set(published.files)


@pytest.mark.parametrize("name", SETS)
def test_missing_files_are_named_with_where_to_get_them_and_where_to_put_them(tmp_path, name):
    for split in SETS[name].files:
        with pytest.raises(ValueError) as caught:
            read(name, split, tmp_path)
        message = str(caught.value)
        assert message.startswith(f"task.x='{name}:{split}': its files are missing; get it from ")
        assert SETS[name].offered in message and str(tmp_path / name) in message
        assert SETS[name].files[split][0][0] in message


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="task.x='gaia:test': gaia has the splits validation, t"):
        read("gaia", "test", tmp_path)


def test_both_halves_of_aime_2025_are_one_split(tmp_path):
    folder = tmp_path / "aime25"
    lines(folder / "aime2025-I.jsonl", [{"question": "A?", "answer": "1"}])
    with pytest.raises(ValueError, match="aime2025-I.jsonl and aime2025-II.jsonl"):
        read("aime25", "test", tmp_path)
    lines(folder / "aime2025-II.jsonl", [{"question": "B?", "answer": "2"}])
    rows, reports = read("aime25", "test", tmp_path)
    assert [row.answers for row in rows] == [("1",), ("2",)]
    assert [report.records for report in reports] == [1, 1]


@pytest.mark.parametrize(
    ("name", "split", "file", "record", "reason"),
    [
        ("gsm8k", "test", "test.jsonl", gsm(1) | {"answer": "42"}, "no '####'"),
        ("gsm8k", "test", "test.jsonl", {"question": "Q?"}, "answer is missing"),
        ("gaia", "text", "2023/validation/metadata.jsonl", task("t", 1, answer="?"), "hidden"),
        ("gaia", "text", "2023/validation/metadata.jsonl", GAIA[0], "duplicate id 'gaia:a'"),
        ("webdancer", "train", "sample_qa.jsonl", {"question": "Q?", "answer": 3}, "no text"),
    ],
)
def test_a_record_that_cannot_be_used_is_counted_with_its_number(
    tmp_path, name, split, file, record, reason
):
    good = next(f for f in FIXTURES if f.set == name and f.write is lines).records
    lines(tmp_path / name / file, [*good, record])
    rows, (report,) = read(name, split, tmp_path)
    assert rows
    assert [bad.number for bad in report.malformed_lines] == [len(good) + 1]
    assert reason in report.malformed_lines[0].problem
    with pytest.raises(ValueError, match="fix the line, or set task.dataset.malformed='skip'"):
        read(name, split, tmp_path, malformed="fail")


def test_unanswerable_questions_of_musique_are_not_taken_for_questions(tmp_path):
    record = {"id": "2hop__1", "question": "Q?", "answer": "x", "answerable": False}
    lines(tmp_path / "musique" / "musique_ans_v1.0_dev.jsonl", [record])
    with pytest.raises(ValueError, match="no usable line .*is not answerable"):
        read("musique", "dev", tmp_path)


def test_a_file_among_many_is_named_where_it_is_wrong(tmp_path):
    folder = tmp_path / "math" / "test" / "algebra"
    folder.mkdir(parents=True)
    good = {"problem": "P?", "level": "Level 1", "solution": "\\boxed{1}"}
    (folder / "1.json").write_text(json.dumps(good | {"solution": "none"}))
    (folder / "2.json").write_text(json.dumps(good))
    rows, (report,) = read("math", "test", tmp_path)
    assert [row.answers for row in rows] == [("1",)]
    assert [bad.problem for bad in report.malformed_lines] == ["1.json: solution boxes no answer"]
    (folder / "2.json").unlink()
    with pytest.raises(ValueError, match="'math:test': no usable record .*boxes no answer"):
        read("math", "test", tmp_path)


def test_a_column_without_a_name_is_no_difficulty(tmp_path):
    records = [{"": str(n), "problem": f"{n}?", "answer": "x"} for n in (1, 2)]
    sheet(tmp_path / "simpleqa" / "simple_qa_test_set.csv", records)
    rows, _ = read("simpleqa", "test", tmp_path)
    assert [(row.question, row.difficulty) for row in rows] == [("1?", ""), ("2?", "")]


def test_browsecomp_needs_its_canary():
    assert decrypted(encrypted("plain"), CANARY) == "plain"
    for hidden in ("no base64!", encrypted("très long text " * 4)):
        with pytest.raises(ValueError, match="cannot be decrypted with its canary"):
            decrypted(hidden, "another canary")


def test_control_characters_that_were_latex_are_repaired_and_line_ends_stay():
    assert repaired("\boxed{\frac{1}{2}}\n\tx") == "\\boxed{\\frac{1}{2}}\n\tx"
    assert math_equal("0.5", repaired("\frac{1}{2}"))


def test_a_run_names_a_set_and_its_split_and_reports_a_count_that_is_not_the_publishers(tmp_path):
    how = {"key": "task.dataset.eval", "manual_dir": str(tmp_path), "malformed": "skip"}
    for fixture in FIXTURES[:2]:
        put(tmp_path, fixture)
    put(tmp_path, next(f for f in FIXTURES if f.split == "easy"))
    questions, (file,) = read_set("gsm8k:train", **how)
    assert [(q.id, q.answers, q.kind) for q in questions] == [
        ("gsm8k:train-1", ("1100",), "gsm8k"),
        ("gsm8k:train-2", ("1200",), "gsm8k"),
    ]
    assert file["summary"].endswith("2 records of 2 lines; the publisher's set has 7473")
    questions, files = read_set("gsm8k:test[:1],webwalkerqa:easy", **how)
    assert [q.kind for q in questions] == ["gsm8k", "webwalkerqa/easy", "webwalkerqa/easy"]
    assert len(files) == 2
    lines(tmp_path / "webwalkerqa" / "data" / "main-00000-of-00001.jsonl", WALK[:1])
    with pytest.raises(ValueError, match="'webwalkerqa:medium': its files hold no question of"):
        read_set("webwalkerqa:medium", **how)
