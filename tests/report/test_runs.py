from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapo_jax.io.jsonl import parse_line
from rapo_jax.report.runs import (
    accuracy,
    accuracy_by_kind,
    as_number,
    hidden_accuracy,
    load_run,
    read_lines,
    series,
)


def test_a_whole_workdir_is_read_without_a_note(make_run):
    run = load_run(make_run("a", seed=3))
    assert (run.notes, run.seed, run.method) == ((), 3, "rapo")
    step, reward = series(run, "reward/mean")
    assert step.tolist() == reward.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert series(run, "loss/sft", stage="sft")[1].tolist() == [2.0]


def test_an_evaluation_of_weights_before_the_last_step_is_not_final(make_run):
    workdir = make_run("a")  # of 4 steps
    result = json.loads((workdir / "result.json").read_text())
    for steps, final in ((3, None), (4, 0.7)):
        (workdir / "result.json").write_text(json.dumps(result | {"steps_after": steps}))
        run = load_run(workdir)
        assert accuracy(run) == final and accuracy(run, "before") == 0.5
        assert any("3 of 4 steps" in note for note in run.notes) is (final is None)


def test_a_last_line_cut_by_a_kill_is_left_out_and_named(make_run):
    workdir = make_run("a")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "stage": "rl", "reward/me')
    run = load_run(workdir)
    assert series(run, "reward/mean")[0].tolist() == [1, 2, 3, 4]
    assert any("metrics.jsonl: 1 unreadable line" in note for note in run.notes)


def test_the_last_row_of_a_step_wins_after_a_resume(make_run):
    workdir = make_run("a")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "stage": "rl", "reward/mean": 9.0}) + "\n")
    step, reward = series(load_run(workdir), "reward/mean")
    assert step.tolist() == [1, 2, 3, 4]
    assert reward.tolist() == [1, 2, 9, 4]


def test_steps_are_in_their_order_whatever_that_of_the_lines(make_run):
    workdir = make_run("a")
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[::-1]))
    step, reward = series(load_run(workdir), "reward/mean")
    assert step.tolist() == reward.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("bad", "places"), [(5, "2, 3, 4, 5, 6"), (6, "2, 3, 4, 5, 6 …")])
def test_unreadable_lines_are_named_as_an_editor_counts_them_the_first_five(tmp_path, bad, places):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + "{\n" * bad)
    notes = []
    assert read_lines(tmp_path / "metrics.jsonl", notes) == [{"step": 1}]
    assert notes == [f"metrics.jsonl: {bad} unreadable line(s) left out ({places})"]


def test_the_method_is_that_of_the_config_not_of_an_older_result(make_run):
    workdir = make_run("a", method="grpo")
    result = json.loads((workdir / "result.json").read_text()) | {"method": "rapo", "seed": 7}
    (workdir / "result.json").write_text(json.dumps(result))
    run = load_run(workdir)
    assert (run.method, run.seed) == ("grpo", 0)


def test_a_missing_file_is_a_note_and_a_missing_folder_too(make_run, tmp_path):
    workdir = make_run("a")
    for name in ("config.json", "metrics.jsonl", "result.json"):
        (workdir / name).unlink()
    notes = " ".join(load_run(workdir).notes)
    assert all(name in notes for name in ("config.json", "metrics.jsonl", "result.json"))
    assert "no such folder" in load_run(tmp_path / "nowhere").notes[0]


def test_values_that_are_no_finite_number_leave_a_gap(make_run):
    workdir = make_run("a")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "stage": "rl", "reward/mean": NaN}\n')
        file.write('{"step": 6, "stage": "rl", "reward/mean": "six"}\n')
        file.write('{"step": "x", "stage": "rl", "reward/mean": 1}\n[1]\n')
    assert series(load_run(workdir), "reward/mean")[0].tolist() == [1, 2, 3, 4]
    assert as_number(True) is None
    assert as_number(float("inf")) is None


def test_hidden_accuracy_is_the_mean_over_the_hidden_types(make_run):
    run = load_run(make_run("a", after=0.9))
    kinds = accuracy_by_kind(run)
    assert hidden_accuracy(run) == (kinds["hidden"] + kinds["hidden_number"]) / 2


def test_the_runs_hidden_accuracy_comes_before_the_mean_of_types(make_run):
    workdir = make_run("a")
    result = json.loads((workdir / "result.json").read_text())
    (workdir / "result.json").write_text(json.dumps(result | {"hidden_after": 0.123}))
    run = load_run(workdir)
    assert hidden_accuracy(run) == 0.123
    assert hidden_accuracy(run, "before") == 0.5  # the mean of types: it has none of hidden words


@given(st.text())
def test_no_line_of_text_raises(text):
    row = parse_line(text)
    assert row is None or isinstance(row, dict)


def test_deeply_nested_json_is_unreadable_rather_than_fatal():
    assert parse_line("[" * 100_000) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(content=st.binary(max_size=60))
def test_no_content_of_the_files_raises(tmp_path, content):
    for name in ("config.json", "metrics.jsonl", "result.json"):
        (tmp_path / name).write_bytes(content)
    load_run(tmp_path)
