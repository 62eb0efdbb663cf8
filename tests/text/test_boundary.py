"""The automaton that finds the end of a step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rapo_jax.text.boundary import boundary_automaton


@pytest.mark.parametrize("stops", [("bc", "abc"), ("abc", "bc")])
def test_of_stops_that_end_together_the_one_named_first_counts(stops):
    automaton = boundary_automaton([b"abc"], stops)
    assert automaton.next_state_AV[0, 0] == automaton.first_accept


def test_the_automaton_is_the_same_in_every_process():
    """Its table is a constant of the rollout's program, which all processes compile alike."""
    code = (
        "from rapo_jax.text.boundary import boundary_automaton as b\n"
        "print(b([bytes([i]) for i in range(256)]).next_state_AV.tobytes().hex())"
    )
    tables = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert tables[0] == tables[1] and len(tables[0]) > 1000
