"""A tape depends on its row alone: not on slots, delays, the order of answers, or devices."""

from __future__ import annotations

import random
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.tools.observation import Observation
from tests.rollout.reference import reference_rows

GROUP, HYBRID = 4, 2
HOW = {"temperature": 1.0, "probability": 0.7, "noise": 0.3, "last_retrieval": 2**30}
SEEDS = (0, 1)


class Late:
    """A tool whose calls return late, in an order that changes from run to run."""

    def __init__(self, tool):
        self._tool = tool
        self.seconds = 0.0
        self.rng = random.Random(0)

    def __call__(self, calls: list[str]) -> list[Observation]:
        time.sleep(self.rng.uniform(0, self.seconds))
        return self._tool(calls)


@pytest.fixture(scope="module")
def late_tools(house):
    return {name: Late(tool) for name, tool in house.tools.items()}


@pytest.fixture(scope="module")
def sample(house):
    def sampled(playing, seed):
        key = jax.random.key(seed)
        groups = {"group_size": GROUP, "n_hybrid": HYBRID}
        return playing.sampler.sample(playing.params, key, house.asked, **groups, **HOW)

    return sampled


@pytest.fixture(scope="module")
def reference(house):
    groups = {"group_size": GROUP, "n_hybrid": HYBRID}
    return {seed: reference_rows(house, jax.random.key(seed), **groups, **HOW) for seed in SEEDS}


def check(trajectory, rows):
    for b, row in enumerate(rows):
        length = trajectory.length_B[b]
        assert trajectory.token_BT[b, :length].tolist() == row.token
        assert trajectory.source_BT[b, :length].tolist() == row.source
        assert trajectory.step_BT[b, :length].tolist() == row.step
        assert trajectory.status_B[b] == row.status
        np.testing.assert_allclose(trajectory.logp_BT[b, :length], row.logp, atol=1e-5)
        np.testing.assert_allclose(trajectory.entropy_BT[b, :length], row.entropy, atol=1e-5)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(("slots", "at_once"), [(0, 1), (1, 4), (5, 3), (16, 16)])
def test_the_tapes_are_those_of_one_row_after_another(
    make_sampler, sample, reference, slots, at_once
):
    how = {"absorb_chunk": 7, "absorb_rows": at_once}
    playing = make_sampler(devices=1, driver="host", slots=slots, **how)
    for seed, rows in reference.items():
        check(sample(playing, seed), rows)


@pytest.mark.parametrize(("devices", "tensor"), [(1, 1), (4, 1), (8, 2)])
def test_a_program_on_any_devices_writes_them_too(make_sampler, sample, reference, devices, tensor):
    playing = make_sampler(devices=devices, driver="jit", tensor=tensor, slots=8, absorb_rows=2)
    check(sample(playing, 0), reference[0])


@pytest.fixture(scope="module")
def late(make_sampler, late_tools):
    return make_sampler(devices=2, driver="jit", slots=8, absorb_rows=3, tools=late_tools)


@pytest.fixture(scope="module")
def prompt_tapes(late, late_tools, sample):
    """Tapes with tools that answer without delay."""
    for tool in late_tools.values():
        tool.seconds = 0.0
    return {seed: sample(late, seed) for seed in SEEDS}


@settings(max_examples=6, deadline=None)
@given(seed=st.sampled_from(SEEDS), search=st.floats(0, 0.05), python=st.floats(0, 0.05))
def test_late_answers_in_any_order_change_no_bit(
    late, late_tools, prompt_tapes, sample, seed, search, python
):
    late_tools["search"].seconds, late_tools["python"].seconds = search, python
    same(sample(late, seed), prompt_tapes[seed])


def test_a_slow_call_delays_its_own_row_only(make_sampler, house, sample):
    """One call waits until no other row runs: were others to wait for it, this would not end."""
    others = threading.Event()
    finished = []

    def search(calls):
        if not finished:
            finished.append(calls)
            assert others.wait(60), "the other rows waited for this call"
        return house.tools["search"](calls)

    def python(calls):
        python.calls += len(calls)
        if python.calls == 8:
            others.set()
        return house.tools["python"](calls)

    python.calls = 0
    playing = make_sampler(
        devices=1, driver="jit", slots=8, tools={"search": search, "python": python}
    )
    assert (sample(playing, 0).status_B > 0).all()
    assert others.is_set()
