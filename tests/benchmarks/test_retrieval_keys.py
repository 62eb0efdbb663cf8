"""benchmarks/retrieval_keys.py: which step trace a key finds, and where a state ends on a tape."""

from __future__ import annotations

import numpy as np

from benchmarks.retrieval_keys import States, shares, step_ends, unit
from rapo_jax.types import Source

PROMPT, POLICY, TOOL = int(Source.PROMPT), int(Source.POLICY), int(Source.TOOL)


def states(decisions, labels=None):
    n = len(decisions)
    return States([""] * n, [""] * n, decisions, labels or [("", 1)] * n, np.zeros((n, 2)))


def test_a_state_is_right_where_its_nearest_trace_takes_its_decision():
    held = states(["mentor", "rival", "mentor"])
    asked = states(["mentor", "rival", "heir"], [("known", 1), ("known", 1), ("known", 2)])
    key_ME = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    key_BE = np.array([[1.0, 0.1], [0.6, 0.8], [0.0, 1.0]])  # nearest: 0, 2, 1
    assert shares(held, asked, (key_ME, key_BE)) == {
        ("known", 1): [True, False],
        ("known", 2): [False],
    }


def test_steps_that_decide_nothing_are_not_counted():
    held, asked = states(["check"]), states(["check"])
    assert shares(held, asked, (np.ones((1, 2)), np.ones((1, 2)))) == {}


def test_a_state_ends_at_the_token_before_the_step_that_follows():
    source_T = np.array([PROMPT, PROMPT, POLICY, POLICY, TOOL, POLICY, POLICY, 0])
    step_T = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    assert step_ends(source_T, step_T) == {0: 1, 1: 4}


def test_hidden_states_are_compared_by_their_angle():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0]])), [[0.6, 0.8]])
