"""Rewards of rollouts by kind of question and part of the training."""

from __future__ import annotations

from benchmarks.rollouts_by_kind import Row, follows, table

NONE = ([], [], [])


def test_rewards_are_averaged_by_part_kind_and_sort_of_rollout():
    rows = [
        Row((0, "a"), "known", False, 1.0, 0, 0.0, [], [], [0.5]),
        Row((0, "a"), "known", True, 0.0, 2, 0.5, [True, True], [0.25, 0.5], [1.0]),
        Row((0, "b"), "known", False, 0.0, 0, 0.0, *NONE),
        Row((0, "b"), "known", True, 0.0, 1, -0.1, [False], [0.0], []),
        Row((1, "c"), "blind", False, 0.25, 0, 0.0, *NONE),
        Row((3, "a"), "known", False, 0.75, 0, 0.0, *NONE),
        Row((4, "a"), "known", False, 0.25, 0, 0.0, *NONE),
    ]
    assert table(rows, parts=2) == [
        ("0–2", "blind", "0.25", "–", "–", "–", "0.00", "–", "–", "–"),
        ("0–2", "known", "0.50", "0.00", "1.50", "0.200", "0.50", "0.67", "0.250", "0.750"),
        ("3–4", "known", "0.50", "–", "–", "–", "0.00", "–", "–", "–"),
    ]


def test_a_step_follows_a_trace_that_stands_just_before_it_and_has_its_decision():
    def piece(source, text, entropy=None):
        return {"source": source, "text": text, "entropy": entropy}

    segments = [
        piece("PROMPT", "who ?"),
        piece("POLICY", "<think> rival</think>", 0.5),
        piece("TOOL", "<result> x</result>"),
        piece("RETRIEVED", "<retrieve><think> heir</think></retrieve>"),
        piece("POLICY", "<think> heir</think>", 0.1),
        piece("RETRIEVED", "<retrieve><think> done</think></retrieve>"),
        piece("POLICY", "<think> heir</think>", 0.2),
    ]
    assert follows(segments) == ([True, False], [0.1, 0.2], [0.5])
