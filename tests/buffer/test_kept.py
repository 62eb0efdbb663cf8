"""Trajectories kept while a buffer is built."""

from __future__ import annotations

import pytest

from rapo_jax.buffer.kept import KeptRollouts, Rollout

ROWS = [Rollout("q", "who?", k, ["<think>a</think>", "é"], "me") for k in range(3)]


def test_what_was_appended_is_there_again_without_a_line_that_was_cut_off(tmp_path):
    files = KeptRollouts(tmp_path / "agents", "a")
    assert files.begin({"x": 1}) == []
    files.append(ROWS[:2])
    files.append(ROWS[2:])
    with open(files.path, "ab") as file:
        file.write(b'{"question_id": "q", "que')
    again = KeptRollouts(tmp_path / "agents", "a")
    assert again.begin({"x": 1}) == ROWS
    again.append(ROWS[:1])
    assert again.begin({"x": 1}) == [*ROWS, ROWS[0]]
    again.rewrite(ROWS[:1])
    assert again.begin({"x": 1}) == ROWS[:1]


def test_trajectories_of_something_else_and_damaged_ones_are_refused(tmp_path):
    files = KeptRollouts(tmp_path, "a")
    files.begin({"model": "x"})
    files.append(ROWS)
    with pytest.raises(
        ValueError, match="another model .'x', now 'y'.; set the old value back, or"
    ):
        files.begin({"model": "y"})
    files.path.write_text("{}\n")
    with pytest.raises(ValueError, match="a.jsonl, line 1: damaged"):
        files.begin({"model": "x"})
