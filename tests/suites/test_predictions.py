"""The files of predictions: whole batches survive a kill, and no row is lost or misplaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rapo_jax.suites.predictions import Predictions, Sampled, join_parts, prediction
from rapo_jax.tasks import Question

WANTED = [(f"q{n}", k) for n in range(3) for k in range(2)]
INFO = {"questions": "abc", "weights": "checkpoint of step 2"}


def row(name, k, text="t"):
    question = Question(name, f"{name}?", ("x",), "made", "made")
    return prediction(question, "f1", Sampled(text, "ANSWERED", 3, [("search", "ok")]), sample=k)


ROWS = [row(*each) for each in WANTED]


def test_the_parts_of_two_processes_join_without_loss_in_the_order_of_rows():
    assert join_parts([ROWS[:3], ROWS[3:]], WANTED) == ROWS
    assert join_parts([ROWS, []], WANTED) == ROWS  # the second had padding alone
    for parts in ([ROWS[:3]], [ROWS[3:], ROWS[:3]], [ROWS[:3], ROWS[2:]]):
        with pytest.raises(RuntimeError, match="6 rows were to be predicted, [367] came back"):
            join_parts(parts, WANTED)


def test_calls_are_counted_by_tool_and_failed_ones_apart():
    calls = [("search", "ok"), ("python", "timeout"), ("search", "empty")]
    question = Question("q", "?", ("x",), "", "")
    found = prediction(question, "f1", Sampled("", "STOPPED", 0, calls), sample=0)
    assert found["calls"] == {"python": 1, "search": 2}
    assert found["failed_calls"] == {"python": 1, "search": 1}


@pytest.mark.parametrize(("whole", "kept"), [(0, 0), (1, 0), (2, 2), (3, 2), (5, 4), (6, 6)])
def test_a_killed_suite_continues_after_the_last_whole_batch(tmp_path, whole, kept):
    files = Predictions(tmp_path, "made", WANTED)
    assert files.begin(INFO, batch=2) == 0
    files.append(ROWS[:whole])
    half = json.dumps(ROWS[whole])[:20] if whole < len(ROWS) else ""
    with open(tmp_path / "made.part.jsonl", "a") as file:
        file.write(half)
    again = Predictions(tmp_path, "made", WANTED)
    assert again.begin(INFO, batch=2) == kept
    again.append(ROWS[kept:])
    assert again.sampled() == ROWS
    again.finish(ROWS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.json", "made.jsonl"]
    assert Predictions(tmp_path, "made", WANTED).begin(INFO, batch=2) == len(WANTED)


def test_resuming_rewrites_no_sample_that_is_kept(tmp_path, monkeypatch):
    files = Predictions(tmp_path, "made", WANTED)
    files.begin(INFO, batch=2)
    files.append(ROWS[:3])

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert Predictions(tmp_path, "made", WANTED).begin(INFO, batch=2) == 2


def test_a_last_batch_that_is_not_full_is_kept(tmp_path):
    files = Predictions(tmp_path, "made", WANTED)
    files.begin(INFO, batch=4)
    files.append(ROWS)
    assert Predictions(tmp_path, "made", WANTED).begin(INFO, batch=4) == 6


def test_predictions_of_other_weights_or_questions_are_refused_with_a_remedy(tmp_path):
    Predictions(tmp_path, "made", WANTED).begin(INFO, batch=2)
    other = INFO | {"weights": "checkpoint of step 4"}
    with pytest.raises(ValueError, match=r"another weights \('checkpoint of step 2', now .*step 4"):
        Predictions(tmp_path, "made", WANTED).begin(other, batch=2)
    with pytest.raises(ValueError, match=r"move made\.\* away from there to predict again"):
        Predictions(tmp_path, "made", WANTED).begin(other, batch=2)


def test_damaged_files_are_refused(tmp_path):
    files = Predictions(tmp_path, "made", WANTED)
    files.begin(INFO, batch=2)
    files.append([ROWS[1], ROWS[0]])
    with pytest.raises(ValueError, match="does not hold the 2 predictions that it should"):
        Predictions(tmp_path, "made", WANTED).begin(INFO, batch=2)
    for junk in ("{]\n{]\n", "3\n4\n"):
        (tmp_path / "made.part.jsonl").write_text(junk)
        with pytest.raises(ValueError, match=r"made\.\* are damaged; move"):
            Predictions(tmp_path, "made", WANTED).begin(INFO, batch=2)
    (tmp_path / "made.json").write_text("{")
    with pytest.raises(ValueError, match=r"made\.json: not JSON .*; move"):
        Predictions(tmp_path, "made", WANTED).begin(INFO, batch=2)


def test_scoring_needs_all_samples(tmp_path):
    files = Predictions(tmp_path, "made", WANTED)
    files.begin(INFO, batch=2)
    files.append(ROWS[:4])
    with pytest.raises(ValueError, match="does not hold the 6 predictions"):
        files.sampled()
