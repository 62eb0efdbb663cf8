"""What is written about a run while it runs."""

from __future__ import annotations

import json

import pytest

from rapo_jax.train.metrics import Metrics, Progress, clock


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_one_json_object_with_its_step_and_stage(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 3, {"reward/mean": 0.5, "time/step": 1})
    assert lines(tmp_path) == [  # readable before the run ends
        {"step": 3, "stage": "rl", "reward/mean": 0.5, "time/step": 1.0}
    ]
    metrics.close()
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 4, {})
    metrics.close()
    assert [line["step"] for line in lines(tmp_path)] == [3, 4]


def test_numbers_that_are_not_finite_stay_readable_json(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 0, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
    metrics.close()
    assert lines(tmp_path) == [{"step": 0, "stage": "rl", "a": None, "b": None, "c": 1.0}]


def test_half_a_line_of_a_killed_run_spoils_no_later_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "stage": "rl"}\n{"step": 1, "sta')
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write("rl", 1, {"x": 1.0})
    metrics.close()
    whole, half, after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(whole)["step"] == 0 and half == '{"step": 1, "sta'
    assert json.loads(after) == {"step": 1, "stage": "rl", "x": 1.0}


def test_tensorboard_gets_the_same_numbers_by_stage(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=True)
    metrics.write("rl", 2, {"reward/mean": 0.25})
    metrics.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"rl/reward/mean" in events.read_bytes()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3725, "1:02:05")]
)
def test_a_clock_shows_minutes_and_hours_only_when_there_are_some(seconds, shown):
    assert clock(seconds) == shown


def test_progress_shows_how_far_and_how_long_still_at_first_and_at_the_end(capsys):
    progress = Progress("rl", total=3, done=0, every_s=1e6)
    for done in (1, 2, 3):
        progress.show(done, reward=0.5, kind="x")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("[rl] 1/3  reward 0.500  kind x  ETA ")
    assert last.startswith("[rl] 3/3") and last.endswith("ETA 0:00")


def test_a_resumed_stage_loses_the_lines_of_the_steps_it_takes_again_and_of_nothing_else(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    for stage, step in (("sft", 9), ("rl", 0), ("rl", 1), ("rl", 2), ("evaluate", 3)):
        metrics.write(stage, step, {"a": 1.0})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "sta')
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.cut_back("rl", 1)
    metrics.write("rl", 1, {"a": 2.0})
    metrics.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"], row["a"]) for row in rows] == [
        ("sft", 9, 1.0),
        ("rl", 0, 1.0),
        ("evaluate", 3, 1.0),
        ("rl", 1, 2.0),
    ]
