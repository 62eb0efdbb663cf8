"""Slots of a scripted policy: what is written where, and when a step ends with which status."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.rollout.reading import (
    joined,
)
from rapo_jax.rollout.slots import (
    Phase,
    closed,
    end_rows,
    fill,
)
from rapo_jax.rollout.thinking import Boundary, ending
from rapo_jax.types import Source, Status
from tests.rollout.programs import ROWS, TOKENS, WIDTH, Programs, lengths, same


@pytest.fixture(scope="module", params=[WIDTH, 4], ids=["whole spans", "chunks of 4"])
def programs(stage, request):
    return Programs(stage, chunk=request.param)


SCRIPTS = (
    "A </search>",
    "B < / p y t h o n >",
    "C D </answer>",
    "E F end",
    "G H G",  # for ever
    "I J K L M N O P Q R </python>",  # the tag is the last token that a step may hold
    "< / p y t h o n >",  # not a tag: its `<` is read, and not written in this step
)


@pytest.fixture(scope="module")
def params(stage):
    return stage.policy(*SCRIPTS)


@pytest.fixture(scope="module")
def steps(programs, params):
    """Host copy of the slots after the first step of every script."""
    return jax.device_get(programs.finish_steps(params, programs.open(params, *"ABCEGI", "<")))


@pytest.mark.parametrize(
    ("row", "phase", "status"),
    [
        (0, Phase.CALLING, Status.RUNNING),
        (1, Phase.CALLING, Status.RUNNING),
        (2, Phase.FREE, Status.ANSWERED),
        (3, Phase.FREE, Status.STOPPED),
        (4, Phase.FREE, Status.OUT_OF_TOKENS),
        (5, Phase.CALLING, Status.RUNNING),
        (6, Phase.FREE, Status.OUT_OF_TOKENS),
    ],
)
def test_a_step_ends_where_its_script_does_with_the_right_status(
    stage, programs, steps, row, phase, status
):
    endless = {4: ["H", "G"] * 5, 6: [*"/python>", "pad", "pad"]}
    wanted = endless.get(row, SCRIPTS[row].split()[1:])
    end = lengths(steps)[row]
    assert stage.names(steps.trajectory.token_BT[row, 1:end]) == " ".join(wanted)
    assert (steps.phase_U[row], steps.trajectory.status_B[row]) == (phase, status)
    assert steps.calls_U[row] == (phase == Phase.CALLING)
    if phase == Phase.CALLING:
        step = programs.step_of(steps)
        assert stage.names(step.token_BX[row, : step.length_B[row]]) == " ".join(wanted)


def test_sampling_writes_its_tokens_behind_each_row_and_nothing_else(steps):
    found = steps.trajectory
    for b, length in enumerate(lengths(steps)):
        place_T = np.arange(found.token_BT.shape[1])
        written_T = (place_T >= 1) & (place_T < length)
        np.testing.assert_array_equal(found.source_BT[b] == Source.POLICY, written_T)
        assert not found.token_BT[b, length:].any()
        for values_T in (found.logp_BT[b], found.entropy_BT[b]):
            assert not values_T[~written_T].any()
        assert (found.entropy_BT[b, written_T] > 0).all()
        assert (found.logp_BT[b, written_T] < 0).all()


def test_a_step_at_the_end_of_its_row_is_out_of_tokens_unless_it_was_finished(stage, programs):
    params = stage.policy("A B C D E", "F G H </answer>", "I J K </search>", "L M end")
    many = " ".join(["V"] * WIDTH)
    slots = fill(programs.open(params, *[many] * 4))
    slots = programs.read(params, slots, *[many] * 4, traces="AFIL")  # 21 tokens are taken then
    slots = jax.device_get(programs.finish_steps(params, slots))
    assert lengths(slots)[:4].tolist() == [TOKENS] * 3 + [TOKENS - 1]
    written = [
        stage.names(slots.trajectory.token_BT[b, 21:n]) for b, n in enumerate(lengths(slots))
    ]
    assert written[:4] == ["B C D", "G H </answer>", "J K </search>", "M end"]
    endings = [Status.OUT_OF_TOKENS, Status.ANSWERED, Status.RUNNING, Status.STOPPED]
    assert slots.trajectory.status_B[:4].tolist() == endings
    step = programs.step_of(slots)  # the call, whose slice would begin too early
    assert stage.names(step.token_BX[2, : step.length_B[2]]) == "J K </search>"

    # a step that called nothing has no observation; one that called has no room for it
    for said, end in (("", Status.STOPPED), ("V", Status.OUT_OF_TOKENS)):
        later = jax.device_get(programs.read(params, slots, "", "", said, ready=np.arange(7) == 2))
        endings[2] = end
        assert later.trajectory.status_B[:4].tolist() == endings
        assert later.trajectory.length_B[2] == TOKENS
        same(later.trajectory.token_BT[:4], slots.trajectory.token_BT[:4])


def test_slots_that_are_not_ready_are_left_as_they_are(programs, params, steps):
    again = jax.device_get(programs.read(params, steps, *["A B"] * ROWS, ready=[False] * ROWS))
    calling_U = steps.phase_U == Phase.CALLING
    assert calling_U.tolist() == [True, True, False, False, False, True, False]
    np.testing.assert_array_equal(again.phase_U, np.where(calling_U, Phase.WAITING, steps.phase_U))
    assert (steps.counts.host_calls, again.counts.host_calls) == ([0], [1])
    same(again.replace(phase_U=steps.phase_U, counts=steps.counts), steps)


def test_sampling_leaves_what_other_slots_hold(programs, params, steps):
    ready = np.arange(ROWS) == 5
    before = jax.device_get(programs.read(params, steps, *["G"] * ROWS, ready=ready))
    after = jax.device_get(programs.finish_steps(params, before))
    same(after.trajectory, before.trajectory, ~ready)
    assert (after.trajectory.token_BT[5] != before.trajectory.token_BT[5]).any()
    same((after.phase_U, after.length_U), (before.phase_U, before.length_U), ~ready)
    same(after.hidden_UD, before.hidden_UD, ~ready)
    for u in (0, 1):
        assert before.phase_U[u] == Phase.WAITING
        for found, wanted in zip(written(after, u), written(before, u), strict=True):
            np.testing.assert_array_equal(found, wanted)


def written(slots, u):
    """Keys and values of a slot's row."""
    end = slots.length_U[u]
    for layer in slots.cache:
        key_BKHT, value_BKTH = layer
        yield from (key_BKHT[u, :, :, :end], value_BKTH[u, :, :end])


def test_a_text_that_does_not_fit_ends_its_row_and_is_not_read(programs, stage):
    params = stage.policy("A B")
    nine = " ".join(["V"] * 9)
    slots = fill(programs.open(params, nine, nine, nine))
    before = jax.device_get(programs.read(params, slots, nine, nine, "V V"))
    assert before.length_U[:3].tolist() == [18, 18, 11]
    texts = ("A B C D E F", "A B C D E F G", nine)
    found = jax.device_get(programs.read(params, before, *texts))
    assert lengths(found)[:3].tolist() == [24, 18, 20]
    # the first fits, and leaves no room for a token of the policy
    statuses = [Status.OUT_OF_TOKENS, Status.OUT_OF_TOKENS, Status.RUNNING]
    assert found.trajectory.status_B[:3].tolist() == statuses
    assert stage.names(found.trajectory.token_BT[0, 18:24]) == texts[0]
    same(found.trajectory.token_BT[1], before.trajectory.token_BT[1])
    np.testing.assert_array_equal(found.hidden_UD[1], before.hidden_UD[1])
    absorbed = found.counts.absorbed - before.counts.absorbed
    assert absorbed == 6 + 9


def test_texts_are_written_with_their_sources_and_steps_and_padding_keeps_the_last(
    programs, stage, tape_text
):
    params = stage.policy("A B")
    slots = fill(programs.open(params, "A B", "A", "A", "A"))
    slots = slots.replace(step_U=jnp.array([2] + [0] * (ROWS - 1)))
    texts, ready = ("C D", "", "E F G H I", "E"), np.isin(np.arange(ROWS), [0, 2, 3])
    traces = ["", "", "J K L M N O"]
    slots = programs.read(params, slots, *texts, traces=traces, ready=ready)
    assert slots.step_U[:5].tolist() == [3, 0, 2, 1, 0]
    assert slots.length_U[:5].tolist() == slots.begin_U[:5].tolist() == [4, 1, 12, 2, 1]
    ended = end_rows(slots, jnp.ones(ROWS, bool), jnp.full(ROWS, Status.STOPPED))
    found = jax.device_get(closed(programs.settings, ended))
    assert tape_text(found)[:5] == [
        "[P0] A B [T2] C D",
        "[P0] A",
        "[P0] A [T0] E F G H I [R1] J K L M N O",
        "[P0] A [T0] E",
        "[P0] V",
    ]
    assert found.token_BT.shape == (ROWS, TOKENS)
    assert found.step_BT[0, 4:].tolist() == [2] * (TOKENS - 4)
    assert found.step_BT[2, 12:].tolist() == [1] * (TOKENS - 12)
    assert not found.step_BT[1].any() and not found.logp_BT.any()


def test_a_row_that_the_host_could_not_serve_is_malformed_and_gets_no_text(programs, params, steps):
    healthy = np.arange(ROWS) != 1
    ready = steps.phase_U == Phase.CALLING
    found = jax.device_get(
        programs.read(params, steps, *["V"] * ROWS, ready=ready, healthy=healthy)
    )
    assert found.trajectory.status_B[[0, 1, 5]].tolist() == [0, Status.MALFORMED, 0]
    assert found.phase_U[[0, 1, 5]].tolist() == [Phase.THINKING, Phase.FREE, Phase.THINKING]
    assert found.trajectory.length_B[1] == steps.length_U[1]
    same(found.trajectory.token_BT[1], steps.trajectory.token_BT[1])


def test_a_call_beyond_max_calls_ends_its_row(programs, params, steps):
    assert programs.settings.max_calls == 2
    slots = programs.read(params, steps, "A", ready=np.arange(ROWS) == 0)
    slots = programs.finish_steps(params, slots)
    assert (slots.calls_U[0], slots.phase_U[0]) == (2, Phase.CALLING)
    slots = programs.read(params, slots, "A", ready=np.arange(ROWS) == 0)
    slots = programs.finish_steps(params, slots)
    assert slots.trajectory.status_B[0] == Status.OUT_OF_CALLS
    assert slots.trajectory.length_B[0] == 1 + 3 * 1 + 2


def test_two_texts_are_joined_without_a_gap():
    first_UX = np.arange(1, 13).reshape(3, 4)
    second_UX = -np.arange(1, 10).reshape(3, 3)
    length_U = np.array([4, 0, 2])
    found_UX = np.asarray(joined(first_UX, second_UX, length_U))
    assert found_UX.shape == (3, 7)
    for u, length in enumerate(length_U):
        wanted = [*first_UX[u, :length], *second_UX[u]]
        assert found_UX[u, : len(wanted)].tolist() == wanted


@pytest.mark.parametrize("asks", [False, True])
def test_a_token_that_closes_a_step_may_also_end_its_row(stage, asks):
    """Automaton states: 0 and 1 inside a step, 2 behind </search>. Ids: 7 is end-of-sequence."""
    most = stage.settings.max_calls
    boundary = Boundary(None, 2, -1, jnp.array([7]), asks_at_eos=asks)
    last = stage.settings.max_tokens - 1
    cases = [  # (token, state, calls, position) -> status, call
        ((1, 2, 0, 3), (Status.RUNNING, True)),
        ((1, 2, most, 3), (Status.OUT_OF_CALLS, False)),
        ((7, 2, most, 3), (Status.STOPPED, False)),
        ((7, 1, 0, 3), (Status.RUNNING, True) if asks else (Status.STOPPED, False)),
        ((7, 1, most, 3), (Status.STOPPED, False)),
        ((7, 1, 0, last), (Status.STOPPED, False)),  # nothing can follow
    ]
    token_U, state_U, calls_U, position_U = (
        jnp.array(x) for x in zip(*(c for c, _ in cases), strict=True)
    )
    slots = SimpleNamespace(
        has=lambda phase: jnp.full(len(cases), phase == Phase.THINKING),
        length_U=position_U,
        begin_U=position_U,
        calls_U=calls_U,
    )
    status_U, called_U, _ = ending(stage.settings, boundary, slots, token_U, state_U)
    found = list(zip(status_U.tolist(), called_U.tolist(), strict=True))
    assert found == [(int(status), call) for _, (status, call) in cases]
