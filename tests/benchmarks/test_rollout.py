"""The benchmark of the rollout: its world, and the share of slots that sample in it."""

from __future__ import annotations

import pytest

from benchmarks.rollout import critical_seconds, make_world, measure


@pytest.fixture(scope="module")
def slow_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return make_world(folder, rows=16, slots=4, driver="host", delay=(0.01, 0.02), layers=1)


def test_sixteen_rows_keep_four_slots_busy(slow_world):
    slow_world.search.asleep, slow_world.search.immediate = False, True
    _, run = measure(slow_world, seed=1)
    assert run["sampled"] > 1000
    assert run["slots_used"] > 0.8  # the rest is the end, when fewer rows than slots are left


def test_the_critical_path_is_that_of_the_row_whose_searches_take_longest(slow_world):
    slow_world.search.asleep, slow_world.search.immediate = True, False
    trajectory, run = measure(slow_world, seed=1)
    least = critical_seconds(slow_world, trajectory, token_s=0.0)
    assert 0.01 <= least <= 3 * 0.02
    tokens = (trajectory.source_BT == 2).sum(1).max()
    assert critical_seconds(slow_world, trajectory, token_s=1.0) >= tokens
    assert run["wall_s"] >= least
