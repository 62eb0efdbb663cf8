"""The suites of runs in the report: one table, for any content of result.json."""

from __future__ import annotations

import json

import pytest

from rapo_jax.report.page import write_report
from rapo_jax.report.runs import load_run
from rapo_jax.report.suites import suite_rows
from rapo_jax.suites.paper import AVERAGED
from rapo_jax.suites.scores import FAILURES, RIGHT
from tests.report.conftest import HOSTILE

KINDS = (RIGHT, *FAILURES)

SUITE = {
    "suite": "gsm8k:test", "metric": "math", "scoring": "official", "weights": "made",
    "backbone": "Qwen2.5-7B-Instruct", "method": "rapo", "questions": 10, "samples": 1,
    "score": 0.8,
    "interval": [0.49, 0.943], "pass@1": 0.8, "pass@1_interval": [0.49, 0.943],
    "scores": {"math": 0.8, "judge": 0.7}, "unjudged": 1, "calls": 1.25, "tokens": 100.4,
    "kinds": dict.fromkeys(KINDS, 0) | {"right": 8, "wrong": 2},
}  # fmt: skip


@pytest.fixture
def with_suites(make_run):
    def make(name, suites):
        workdir = make_run(name)
        path = workdir / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"suites": suites}))
        return workdir

    return make


def test_a_suite_is_a_row_with_its_interval_and_its_failures_by_kind(with_suites):
    (row,) = suite_rows([load_run(with_suites("a", {"gsm8k": SUITE}))])
    assert row == {
        "Suite": "gsm8k", "Run": "a", "Questions": "10", "Metric": "math", "Scoring": "official",
        "Score": "80.0 [49.0, 94.3]", "Pass@1": "80.0 [49.0, 94.3]", "Judge": "70.0 (9 of 10)",
        "Paper": "92.7", "Paper: best other": "92.8 GRPO", "Calls": "1.2", "Tokens": "100",
    } | dict.fromkeys(KINDS, "0") | {"right": "8", "wrong": "2"}  # fmt: skip


def test_all_ten_suites_have_an_average_beside_the_papers(with_suites):
    rows = suite_rows([load_run(with_suites("a", dict.fromkeys(AVERAGED, SUITE)))])
    assert [row["Suite"] for row in rows] == [*AVERAGED, "average"]
    mean = [rows[-1][name] for name in ("Score", "Paper", "Paper: best other")]
    assert mean == ["80.0", "51.3", "49.6 AEPO"]


def test_suites_scored_by_different_rules_have_no_average(with_suites):
    strict = dict.fromkeys(AVERAGED[:7], SUITE | {"scoring": "strict"})
    rows = suite_rows([load_run(with_suites("a", dict.fromkeys(AVERAGED, SUITE) | strict))])
    assert [row["Scoring"] for row in rows] == ["strict"] * 7 + ["official"] * 3


def test_the_page_shows_one_table_and_names_runs_where_there_are_several(with_suites, tmp_path):
    one = with_suites("a", {"gsm8k": SUITE})
    page = write_report([one], tmp_path / "one.html").read_text()
    assert page.count('id="suites"') == 1 and "80.0 [49.0, 94.3]" in page
    assert "<th>Run</th>" not in page and "<th>out of tokens</th>" in page
    two = [one, with_suites("b", {"gsm8k": SUITE, "math": SUITE})]
    page = write_report(two, tmp_path / "two.html").read_text()
    assert page.count('id="suites"') == 1 and "<th>Run</th>" in page
    assert "1 run." not in page and "Comparison of" not in page  # suites make no variant


def test_a_run_without_suites_has_no_such_section(make_run, tmp_path):
    page = write_report([make_run("a")], tmp_path / "report.html").read_text()
    assert 'id="suites"' not in page and "#suites" not in page


@pytest.mark.parametrize(
    "suites",
    [3, [], {"x": None}, {"x": {}}, {"x": {"score": "high", "interval": [1], "kinds": 3}},
     {HOSTILE: {"metric": HOSTILE, "score": float("nan"), "scores": [], "interval": [None, 1]}}],
)  # fmt: skip
def test_unusable_values_of_the_file_become_dashes(with_suites, suites):
    for row in suite_rows([load_run(with_suites("a", suites))]):
        assert row["Score"] == "–" and {row[kind] for kind in KINDS} == {"–"}


def test_a_hostile_suite_is_escaped(with_suites, tmp_path):
    workdir = with_suites("a", {HOSTILE: {"metric": HOSTILE}})
    page = write_report([workdir], tmp_path / "report.html").read_text()
    assert HOSTILE not in page and "&lt;/script&gt;" in page
