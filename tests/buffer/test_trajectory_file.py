"""Trajectories kept while a buffer is built."""

from __future__ import annotations

import pytest

from rapo_jax.buffer.trajectories import UNSCORED, AgentTrajectory
from rapo_jax.buffer.trajectory_file import TrajectoryFile

ROWS = [
    AgentTrajectory("q", "who?", ["<think>a</think>", "é"], UNSCORED, "me", k) for k in range(3)
]


def test_appended_trajectories_are_read_back_without_a_line_that_was_cut_off(tmp_path):
    files = TrajectoryFile(tmp_path / "agents", "a")
    assert files.begin({"x": 1}) == []
    files.append(ROWS[:2])
    files.append(ROWS[2:])
    with open(files.path, "ab") as file:
        file.write(b'{"question_id": "q", "que')
    again = TrajectoryFile(tmp_path / "agents", "a")
    assert again.begin({"x": 1}) == ROWS
    again.append(ROWS[:1])
    assert again.begin({"x": 1}) == [*ROWS, ROWS[0]]
    again.rewrite(ROWS[:1])
    assert again.begin({"x": 1}) == ROWS[:1]


def test_trajectories_sampled_otherwise_and_damaged_ones_are_refused(tmp_path):
    files = TrajectoryFile(tmp_path, "a")
    files.begin({"model": "x"})
    files.append(ROWS)
    with pytest.raises(
        ValueError, match="another model .'x', now 'y'.; set the old value back, or"
    ):
        files.begin({"model": "y"})
    files.path.write_text("{}\n")
    with pytest.raises(ValueError, match="a.jsonl, line 1: damaged"):
        files.begin({"model": "x"})
