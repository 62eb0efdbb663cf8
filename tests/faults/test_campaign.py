"""The faults of benchmarks/faults.py: what it compares, and its fuzz targets for a moment."""

from __future__ import annotations

import json

import pytest

from benchmarks.faults import reward
from benchmarks.fuzz import TARGETS, tried, with_hypothesis
from benchmarks.small_runs import difference
from rapo_jax.tasks import outcome_reward

RIGHT = "<think>t</think><answer>\\boxed{Bob}</answer>"


@pytest.mark.parametrize("name", TARGETS)
def test_random_bytes_raise_nothing_but_value_errors(name):
    target, seeds = TARGETS[name]
    for seed in seeds:
        tried(target, seed)
    assert with_hypothesis(name, 1) > 10


def test_runs_differ_in_metrics_and_trajectories_but_not_in_times(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for workdir, seconds in ((one, 1.0), (other, 2.0)):
        workdir.mkdir()
        row = {"stage": "rl", "step": 0, "loss": 0.5, "time/step": seconds}
        (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (workdir / "trajectories.jsonl").write_text("{}\n")
    assert difference(one, other) == ""
    (one / "trajectories.jsonl").write_text("{}\n{}\n")
    assert difference(one, other) == "trajectories.jsonl"
    (other / "trajectories.jsonl").write_text("{}\n{}\n")
    (other / "metrics.jsonl").write_text(json.dumps({"stage": "rl", "step": 0, "loss": 0.4}) + "\n")
    assert difference(one, other) == "metrics.jsonl"


def test_the_reward_that_can_hang_is_the_papers():
    assert reward(RIGHT, ("Bob",)) == outcome_reward(RIGHT, ("Bob",)) == 1.0
