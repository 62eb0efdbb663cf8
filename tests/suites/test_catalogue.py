"""Suites by name: the paper's fourteen, published sets with a split, files of a user."""

from __future__ import annotations

import json

import pytest

from rapo_jax.suites.catalogue import SUITES, read_suites
from rapo_jax.suites.paper import AVERAGED
from rapo_jax.tasks.published import SETS
from tests.tasks.published.fixtures import FIXTURES, gsm, lines

HOW = {"malformed": "skip", "metric": "f1"}


def read(*wanted, manual_dir):
    return read_suites(wanted, manual_dir=str(manual_dir), **HOW)


def fixture_of(name):
    listed = SUITES[name]
    return next(f for f in FIXTURES if (f.set, f.split) == (listed.set, listed.split))


@pytest.mark.parametrize("name", SUITES)
def test_each_of_the_fourteen_suites_reads_its_publishers_files_with_its_metric(tmp_path, name):
    fixture = fixture_of(name)
    fixture.write(tmp_path / fixture.set / fixture.file, fixture.records)
    (suite,) = read(name, manual_dir=tmp_path)
    assert suite.name == name
    assert [q.question for q in suite.questions] == [row[0] for row in fixture.rows]
    assert [q.answers for q in suite.questions] == [row[1] for row in fixture.rows]
    assert list(suite.metrics) == [row[2] for row in fixture.rows]
    assert suite.metric == SETS[fixture.set].metric


def test_there_are_fourteen_suites_ten_of_which_the_paper_averages_over():
    assert len(SUITES) == 14
    assert set(AVERAGED) == {name for name, each in SUITES.items() if each.family != "web"}
    for listed in SUITES.values():
        assert listed.split in SETS[listed.set].files


def test_a_split_and_a_first_part_make_another_suite(tmp_path):
    lines(tmp_path / "gsm8k" / "train.jsonl", [gsm(n) for n in range(5)])
    (suite,) = read("gsm8k:train[:2]", manual_dir=tmp_path)
    assert suite.name == "gsm8k-train-first2" and len(suite.questions) == 2
    assert suite.metrics == ("math",) * 2
    with pytest.raises(ValueError, match=r"'gsm8k:train\[:6\]': gsm8k:train has 5 questions; take"):
        read("gsm8k:train[:6]", manual_dir=tmp_path)


def test_a_file_is_a_suite_with_the_metric_of_the_task(tmp_path):
    path = tmp_path / "my questions.v1.jsonl"
    path.write_text(json.dumps({"question": "Q?", "answer": 7}) + "\nnot json\n")
    (suite,) = read_suites([str(path)], manual_dir="", malformed="skip", metric="math")
    assert (suite.name, suite.metric, suite.source) == ("my_questions", "math", str(path))
    assert "1 malformed (line 2: not JSON" in suite.notes[0]
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_suites([str(path)], manual_dir="", malformed="fail", metric="math")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("hotpot", "no such suite and no such file; did you mean 'hotpotqa'?"),
        ("GSM8K", "did you mean 'gsm8k'?"),
        ("gsm9k:test", "did you mean 'gsm8k'?"),
        ("zzz.jsonl", "no such file; the suites are gsm8k, math, "),
        ("gaia:level9", "gaia has the splits validation, text, level1"),
        ("asearcher", "there is no such suite"),
    ],
)
def test_an_unknown_suite_is_refused_with_the_nearest_known_one(tmp_path, wanted, message):
    with pytest.raises(ValueError, match="evaluate.suites=") as caught:
        read(wanted, manual_dir=tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", SUITES)
def test_missing_files_are_named_with_where_to_get_them_and_where_to_put_them(tmp_path, name):
    published = SETS[SUITES[name].set]
    for manual_dir in (str(tmp_path), ""):
        with pytest.raises(ValueError, match="evaluate.suites=") as caught:
            read(name, manual_dir=manual_dir)
        message = str(caught.value)
        first_pattern = published.files[SUITES[name].split][0][0]
        assert published.offered in message and first_pattern in message
        assert (manual_dir or "evaluate.manual_dir=MANUAL_DIR") in message


def test_two_suites_of_one_name_are_refused(tmp_path):
    lines(tmp_path / "gsm8k" / "test.jsonl", [gsm(1)])
    with pytest.raises(ValueError, match="another suite has the name 'gsm8k' too"):
        read("gsm8k", "gsm8k", manual_dir=tmp_path)


def test_suites_with_other_questions_or_metrics_have_other_digests(tmp_path):
    lines(tmp_path / "gsm8k" / "test.jsonl", [gsm(1), gsm(2)])
    (suite,) = read("gsm8k", manual_dir=tmp_path)
    (again,) = read("gsm8k", manual_dir=tmp_path)
    assert suite.digest() == again.digest() != suite.only([1]).digest()
