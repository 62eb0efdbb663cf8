"""The loop over turns with a scripted policy and callbacks of a few lines: exact tapes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.model.sharding import make_mesh
from rapo_jax.rollout.loop import HostCallbacks, call_directly, loop_unfinished, parts, rollout
from rapo_jax.rollout.slots import (
    RolloutInputs,
)
from rapo_jax.sampling.programs import compiled
from rapo_jax.types import ActAnswer, Source, Status, Texts

SCRIPT = ("A C </search>", "E F </python>", "G H </answer>", "B D </python>", "I J </search>")
"""Observations end in E, traces in G or I: the policy continues from there."""


class Act(NamedTuple):
    """Rows of one call of `act`."""

    calls: list[int]
    waits: list[int]
    wants: list[int]
    ready: list[int]
    idle: bool


class Search(NamedTuple):
    """Rows of one call of `search`, and the room of each."""

    wants: list[int]
    room: list[int]


class Played(NamedTuple):
    """Each row's tape as text and its status; and what the host was asked for."""

    texts: list[str]
    statuses: list[int]
    acts: list[Act]
    searches: list[Search]


@pytest.fixture(scope="module")
def perform(stage, tape_text):
    """Plays the script in a world.

    Rows 0 and 1 ask question A, rows 2 and 3 question B; the second of each pair is hybrid. The
    first observation of row r is ready when it is asked for the `delays[r]`-th time.
    """
    params, made = stage.policy(*SCRIPT), {}

    def functions(slots):
        if slots not in made:
            plain = parts(stage.model, stage.settings, stage.boundary, ten_times, slots=slots)
            made[slots] = compiled(plain, make_mesh(jax.devices()[:1]))
        return made[slots]

    def play(
        *,
        says="E",
        trace="G",
        healthy=True,
        finds=True,
        probability=1.0,
        last=99,
        prompts=("A", "B"),
        slots=0,
        delays=None,
    ):
        acts, searches, asked = [], [], Counter()

        def act(request):
            row_U, calls_U, waits_U = request.row_U, request.calls_U, request.waits_U
            wants_U, idle_U = request.retrieves_U, request.idle_U
            asked.update(row_U[calls_U | waits_U].tolist())
            late_U = np.array([asked[row] < (delays or {}).get(row, 1) for row in row_U.tolist()])
            ready_U = (calls_U | waits_U) & ~late_U
            rows = (row_U[each].tolist() for each in (calls_U, waits_U, wants_U, ready_U))
            acts.append(Act(*rows, idle_U.all()))
            assert idle_U.all() == idle_U.any()
            texts = [says if ready and healthy else "" for ready in ready_U]
            span = stage.span(*texts, width=stage.settings.observation_tokens)
            healthy_U = ~ready_U | healthy
            return ActAnswer(ready_U, Texts(healthy_U, span), queries(row_U))

        def search(request):
            row_U, wants_U, room_U = request.row_U, request.retrieves_U, request.room_U
            key_UE = request.key_UE
            np.testing.assert_array_equal(key_UE, 10 * queries(row_U) * wants_U[:, None])
            searches.append(Search(row_U[wants_U].tolist(), room_U[wants_U].tolist()))
            fits_U = wants_U & (len(trace.split()) < room_U)
            texts = [trace if fits else "" for fits in fits_U]
            span = stage.span(*texts, width=stage.settings.retrieved_tokens)
            return Texts(np.full(len(row_U), finds), span)

        inputs = RolloutInputs(
            key=jax.random.key(0),
            row_B=jnp.arange(4),
            hybrid_B=jnp.array([False, True] * 2),
            probability=jnp.float32(probability),
            noise=jnp.float32(0),
            temperature=jnp.float32(0),
            last_retrieval=jnp.int32(last),
        )
        callbacks = HostCallbacks(act, search, jax.ShapeDtypeStruct((2,), np.float32))
        prompt = stage.span(*prompts, width=stage.settings.prompt_tokens)
        fixed = (functions(slots), call_directly, callbacks, stage.settings, params)
        how = {"group_size": 2, "retrieves": True, "repeat": loop_unfinished}
        found, _ = jax.device_get(rollout(*fixed, inputs, prompt, **how))
        return Played(tape_text(found), found.status_B.tolist(), acts, searches)

    return play


def ten_times(query_UE):
    return 10 * query_UE


def queries(row_U):
    return np.stack([row_U, row_U + 1], axis=1).astype(np.float32)


def test_think_act_retrieve_and_go_on(perform):
    found = perform()
    hybrid = "[T0] E [R1] G [Q2] H </answer>"
    assert found.texts == [
        "[P0] A [Q0] C </search> [T0] E [Q1] F </python> [T1] E [Q2] F </python>",
        f"[P0] A [Q0] C </search> {hybrid}",
        "[P0] B [Q0] D </python> [T0] E [Q1] F </python> [T1] E [Q2] F </python>",
        f"[P0] B [Q0] D </python> {hybrid}",
    ]
    assert found.statuses == [Status.OUT_OF_CALLS, Status.ANSWERED] * 2
    assert found.acts == [  # max_calls = 2: the third call is one too many
        Act([0, 1, 2, 3], [], [1, 3], [0, 1, 2, 3], True),
        Act([0, 2], [], [], [0, 2], True),
    ]
    assert [search.wants for search in found.searches] == [[1, 3]]


def test_no_boundary_retrieves_when_the_coin_says_no_or_the_last_one_is_past(perform):
    on_policy = perform().texts[0]
    for inputs in ({"probability": 0.0}, {"last": 0}):
        found = perform(**inputs)
        assert found.texts[:2] == [on_policy] * 2
        assert not found.searches and not any(act.wants for act in found.acts)
    row = perform(trace="I", last=1).texts[1]  # a second boundary follows, and retrieves nothing
    assert row.endswith("[R1] I [Q2] J </search> [T2] E [Q3] F </python>")
    row = perform(trace="I").texts[1]
    assert row.endswith("[R1] I [Q2] J </search> [T2] E [R3] I [Q4] J </search>")


def test_rows_that_the_host_could_not_serve_are_malformed_and_end_there(perform):
    found = perform(healthy=False)
    assert found.texts[0] == found.texts[1] == "[P0] A [Q0] C </search>"
    assert found.statuses == [Status.MALFORMED] * 4
    assert len(found.acts) == 1 and not found.searches


def test_a_row_whose_search_failed_is_malformed_and_the_others_go_on(perform):
    found = perform(finds=False)
    assert found.statuses == [Status.OUT_OF_CALLS, Status.MALFORMED] * 2


def test_an_observation_that_does_not_fit_ends_its_row(perform):
    # of 18 tokens 3 + 2 + 4 + 5 + 2 = 16 are taken when the second observation wants 4
    found = perform(says="K L M E", trace="K L M N I", prompts=("U U A", "B"))
    wanted = "[P0] U U A [Q0] C </search> [T0] K L M E [R1] K L M N I [Q2] J </search>"
    assert found.texts[1] == wanted
    assert found.statuses[1] == Status.OUT_OF_TOKENS


def test_a_trace_that_does_not_fit_is_left_out_and_the_row_goes_on(perform):
    # 3 + 2 + 2 + 5 + 2 + 2 = 16 are taken when the second trace wants 5
    found = perform(says="K E", trace="K L M N I", prompts=("U U A", "B"))
    assert found.texts[1].endswith("[R1] K L M N I [Q2] J </search> [T2] K E [Q3] F </python>")
    assert found.statuses[1] == Status.OUT_OF_CALLS
    rooms = [dict(zip(*search, strict=True))[1] for search in found.searches]
    assert rooms == [18 - 7, 18 - 16]


def test_a_trace_that_would_fill_its_row_is_left_out_and_the_row_goes_on(perform):
    # 2 + 2 + 1 + 5 + 2 + 1 = 13 are taken when the second trace wants all of the other 5
    found = perform(says="E", trace="K L M N I", prompts=("U A", "B"))
    assert found.texts[1].endswith("[R1] K L M N I [Q2] J </search> [T2] E [Q3] F </python>")
    assert found.statuses[1] == Status.OUT_OF_CALLS


def test_a_row_whose_observation_is_late_waits_and_the_others_go_on(perform):
    prompt, late = perform(), perform(delays={0: 5})
    assert (late.texts, late.statuses) == (prompt.texts, prompt.statuses)
    assert late.acts[0] == Act([0, 1, 2, 3], [], [1, 3], [1, 2, 3], True)
    assert late.acts[1] == Act([2], [0], [], [2], True)  # row 2 is a call further
    assert late.acts[2:5] == [Act([], [0], [], ready, True) for ready in ([], [], [0])]
    assert late.acts[5:] == [Act([0], [], [], [0], True)]


def test_a_trace_is_retrieved_when_the_observation_is_there(perform):
    prompt, late = perform(), perform(delays={1: 3, 3: 2})
    assert (late.texts, late.statuses) == (prompt.texts, prompt.statuses)
    assert [search.wants for search in late.searches] == [[3], [1]]


def test_the_host_is_called_while_others_sample_and_knows_that_they_do(perform):
    found = perform(prompts=("A", "J"), probability=0.0)  # rows 2 and 3 call a token earlier
    assert found.acts == [Act(rows, [], [], rows, False) for rows in ([2, 3], [0, 1]) * 2]


@pytest.mark.parametrize("slots", [1, 3])
def test_fewer_slots_than_rows_write_the_same_tapes(perform, slots):
    for world in ({}, {"trace": "I"}, {"says": "K L M E", "trace": "K L M N I"}):
        whole = perform(**world)
        for delays in ({}, {0: 3, 2: 2, 3: 6}):
            found = perform(**world, slots=slots, delays=delays)
            assert (found.texts, found.statuses) == (whole.texts, whole.statuses)
            assert all(len(act.calls + act.waits) <= slots for act in found.acts)


@pytest.mark.parametrize("ending", ["end", "step"])
def test_a_step_without_an_action_gets_a_reply_where_the_protocol_says_so(stage, tape_text, ending):
    """Row 0 writes C and ends; row 1 writes a whole call. The reply is E, and row 0 calls then."""
    width = 10 if ending == "end" else 2
    settings = dataclasses.replace(stage.settings, max_calls=2, step_tokens=width, n_hybrid=0)
    first = "A C end" if ending == "end" else "A C I J K"
    params = stage.policy(first, "E F G </answer>" if width > 2 else "E F end", "B D </python>")
    asked = []

    def act(request):
        row_U, calls_U, step = request.row_U, request.calls_U, request.step
        for u in np.flatnonzero(calls_U):
            asked.append((int(row_U[u]), stage.names(step.token_BX[u, : step.length_B[u]])))
        span = stage.span(*("E" if call else "" for call in calls_U), width=4)
        return ActAnswer(calls_U, Texts(np.ones(2, bool), span), queries(row_U))

    def play(asks):
        ends = stage.boundary._replace(asks_at_eos=asks)
        plain = parts(stage.model, settings, ends, ten_times, slots=0)
        inputs = RolloutInputs(
            key=jax.random.key(0),
            row_B=jnp.arange(2),
            hybrid_B=jnp.array([False] * 2),
            probability=jnp.float32(0),
            noise=jnp.float32(0),
            temperature=jnp.float32(0),
            last_retrieval=jnp.int32(99),
        )
        callbacks = HostCallbacks(act, act, jax.ShapeDtypeStruct((2,), np.float32))
        fixed = (compiled(plain, make_mesh(jax.devices()[:1])), call_directly, callbacks)
        prompt = stage.span("A", "B", width=stage.settings.prompt_tokens)
        how = {"group_size": 1, "retrieves": False, "repeat": loop_unfinished}
        found, _ = jax.device_get(rollout(*fixed, settings, params, inputs, prompt, **how))
        return found, tape_text(found)

    found, texts = play(True)
    if ending == "end":  # the token that ended the step is not kept
        assert texts[0] == "[P0] A [Q0] C [T0] E [Q1] F G </answer>"
        assert found.status_B.tolist() == [Status.ANSWERED] * 2
        assert (0, "C") in asked
        assert found.logp_BT[0][found.source_BT[0] == Source.TOOL].tolist() == [0.0]
        assert play(False)[1][0] == "[P0] A [Q0] C end"
    else:
        assert texts[0] == "[P0] A [Q0] C I [T0] E [Q1] F [T1] E [Q2] F end"
        assert (0, "C I") in asked and found.status_B[0] == Status.STOPPED
        assert play(False)[1][0] == "[P0] A [Q0] C I"
