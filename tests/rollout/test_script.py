"""The loop over agent steps with a scripted policy and three-line callbacks: exact tapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.rollout.loop import (
    HostCallbacks,
    RolloutInputs,
    call_directly,
    loop_steps,
    parts,
    rollout,
)
from rapo_jax.train.programs import compiled
from rapo_jax.types import Status

SCRIPT = ("A C </search>", "E F </python>", "G H </answer>", "B D </python>", "I J </search>")
"""Observations end in E, traces in G or I: the policy goes on from there."""


@pytest.fixture(scope="module")
def perform(stage, tape_text):
    """Plays the script in a world; returns each row's tape as text, its status, and what was asked.

    Rows 0 and 1 ask question A, rows 2 and 3 question B; the second of each pair is hybrid.
    """
    made = parts(stage.model, stage.settings, stage.boundary, lambda query_BE: 10 * query_BE)
    functions = compiled(made)
    params = stage.policy(*SCRIPT)

    def play(*, says="E", trace="G", healthy=True, probability=1.0, last=99, prompts=("A", "B")):
        asked = []

        def act(row_B, token_BX, length_B, calls_B):
            texts = [says if calls else "" for calls in calls_B]
            asked.append(("act", row_B.tolist(), calls_B.tolist()))
            span = stage.span(*texts, width=stage.settings.observation_tokens)
            return span.token_BX, span.length_B * healthy, ~calls_B | healthy

        def key(row_B, wants_B):
            asked.append(("key", wants_B.tolist()))
            return np.stack([row_B, wants_B], axis=1).astype(np.float32)

        def search(row_B, wants_B, key_BE, pick_B, room_B):
            np.testing.assert_array_equal(key_BE, 10 * np.stack([row_B, wants_B], axis=1))
            asked.append(("search", room_B.tolist()))
            fits_B = wants_B & (len(trace.split()) <= room_B)
            texts = [trace if fits else "" for fits in fits_B]
            span = stage.span(*texts, width=stage.settings.retrieved_tokens)
            return span.token_BX, span.length_B, np.ones(len(row_B), bool)

        inputs = RolloutInputs(
            key=jax.random.key(0),
            hybrid_B=jnp.array([False, True] * 2),
            probability=jnp.float32(probability),
            noise=jnp.float32(0),
            temperature=jnp.float32(0),
            last_retrieval=jnp.int32(last),
        )
        callbacks = HostCallbacks(act, key, search, jax.ShapeDtypeStruct((2,), np.float32))
        prompt = stage.span(*prompts, width=stage.settings.prompt_tokens)
        fixed = (functions, call_directly, callbacks, stage.settings, params)
        how = {"group_size": 2, "retrieves": True, "repeat": loop_steps}
        found = jax.device_get(rollout(*fixed, inputs, prompt, **how))
        return tape_text(found), found.status_B.tolist(), asked

    return play


def test_think_act_retrieve_and_go_on(perform):
    texts, statuses, asked = perform()
    hybrid = "[T0] E [R1] G [Q2] H </answer>"
    assert texts == [
        "[P0] A [Q0] C </search> [T0] E [Q1] F </python> [T1] E [Q2] F </python>",
        f"[P0] A [Q0] C </search> {hybrid}",
        "[P0] B [Q0] D </python> [T0] E [Q1] F </python> [T1] E [Q2] F </python>",
        f"[P0] B [Q0] D </python> {hybrid}",
    ]
    assert statuses == [Status.OUT_OF_STEPS, Status.ANSWERED] * 2
    assert [call for call in asked if call[0] == "act"] == [
        ("act", [0, 1, 2, 3], [True] * 4),
        ("act", [0, 1, 2, 3], [True, False] * 2),
        ("act", [0, 1, 2, 3], [False] * 4),  # max_calls = 2: the third call is one too many
    ]
    wanted = [[False, True] * 2, [False] * 4, [False] * 4]
    assert [call[1] for call in asked if call[0] == "key"] == wanted


def test_no_boundary_retrieves_when_the_coin_says_no_or_the_last_one_is_past(perform):
    on_policy = perform()[0][0]
    for inputs in ({"probability": 0.0}, {"last": 0}):
        assert perform(**inputs)[0][:2] == [on_policy] * 2
    row = perform(trace="I", last=1)[0][1]  # a second boundary follows, and retrieves nothing
    assert row.endswith("[R1] I [Q2] J </search> [T2] E [Q3] F </python>")
    row = perform(trace="I")[0][1]
    assert row.endswith("[R1] I [Q2] J </search> [T2] E [R3] I [Q4] J </search>")


def test_rows_that_the_host_could_not_serve_are_malformed_and_end_there(perform):
    texts, statuses, asked = perform(healthy=False)
    assert texts[0] == texts[1] == "[P0] A [Q0] C </search>"
    assert statuses == [Status.MALFORMED] * 4
    assert not any(any(call[2]) for call in asked[1:] if call[0] == "act")


def test_an_observation_that_does_not_fit_ends_its_row(perform):
    # of 18 slots 3 + 2 + 4 + 5 + 2 = 16 are taken when the second observation wants 4
    texts, statuses, _ = perform(says="K L M E", trace="K L M N I", prompts=("U U A", "B"))
    assert texts[1] == "[P0] U U A [Q0] C </search> [T0] K L M E [R1] K L M N I [Q2] J </search>"
    assert statuses[1] == Status.OUT_OF_TOKENS


def test_a_trace_that_does_not_fit_is_left_out_and_the_row_goes_on(perform):
    # 3 + 2 + 2 + 5 + 2 + 2 = 16 are taken when the second trace wants 5
    texts, statuses, asked = perform(says="K E", trace="K L M N I", prompts=("U U A", "B"))
    assert texts[1].endswith("[R1] K L M N I [Q2] J </search> [T2] K E [Q3] F </python>")
    assert statuses[1] == Status.OUT_OF_STEPS
    rooms = [call[1][1] for call in asked if call[0] == "search"]
    assert rooms == [18 - 7, 18 - 16, 0]
