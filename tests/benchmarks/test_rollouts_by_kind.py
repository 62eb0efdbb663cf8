"""Rewards of rollouts by kind of question and part of the training."""

from __future__ import annotations

from benchmarks.rollouts_by_kind import Row, table


def test_rewards_are_averaged_by_part_kind_and_sort_of_rollout():
    rows = [
        Row((0, "a"), "known", False, 1.0, 0, 0.0),
        Row((0, "a"), "known", True, 0.0, 2, 0.5),
        Row((0, "b"), "known", False, 0.0, 0, 0.0),
        Row((0, "b"), "known", True, 0.0, 1, -0.1),
        Row((1, "c"), "blind", False, 0.25, 0, 0.0),
        Row((3, "a"), "known", False, 0.75, 0, 0.0),
        Row((4, "a"), "known", False, 0.25, 0, 0.0),
    ]
    assert table(rows, parts=2) == [
        ("0–2", "blind", "0.25", "–", "–", "–", "0.00"),
        ("0–2", "known", "0.50", "0.00", "1.50", "0.200", "0.50"),
        ("3–4", "known", "0.50", "–", "–", "–", "0.00"),
    ]
