"""The order of things: rows take free slots, the host is called in time, boundaries draw."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.rollout import thinking as thinking_module
from rapo_jax.rollout.slots import (
    Phase,
    closed,
    end_rows,
    fill,
    open_slots,
)
from rapo_jax.rollout.thinking import (
    draw,
)
from rapo_jax.types import Source, Status
from tests.rollout.programs import ROWS, TOKENS, Programs, inputs_of, same

LEAVING = ("A B C end", "D E end", "F </answer>", "G H I J K L end")


def test_free_slots_take_the_next_rows_and_get_copies_of_their_prompts(stage):
    params = stage.policy(*LEAVING)
    settings = dataclasses.replace(stage.settings, max_tokens=TOKENS)
    prompt = stage.span("A B", "D", "F F F", width=stage.settings.prompt_tokens)
    opened = open_slots(stage.model, settings, params, prompt, slots=4, group_size=2)
    assert opened.due_B.tolist() == [True] * 6 and not (opened.phase_U != Phase.FREE).any()
    slots = fill(opened)
    assert slots.due_B.tolist() == [False] * 4 + [True] * 2 and slots.row_U.tolist() == [0, 1, 2, 3]
    assert slots.length_U.tolist() == slots.begin_U.tolist() == [2, 2, 1, 1]
    same(fill(slots), slots)

    ended = end_rows(slots, jnp.array([False, True, False, False]), jnp.full(4, Status.STOPPED))
    assert ended.phase_U.tolist() == [Phase.THINKING, Phase.FREE, Phase.THINKING, Phase.THINKING]
    again = fill(ended.replace(step_U=slots.step_U + 3, calls_U=slots.calls_U + 1))
    assert again.due_B.tolist() == [False] * 5 + [True] and again.row_U.tolist() == [0, 4, 2, 3]
    assert again.step_U.tolist() == [3, 0, 3, 3] and again.calls_U.tolist() == [1, 0, 1, 1]
    X = stage.settings.prompt_tokens
    for u, q in ((0, 0), (1, 2), (2, 1), (3, 1)):
        np.testing.assert_array_equal(again.hidden_UD[u], slots.prompts.hidden_QD[q])
        for layer, read_once in zip(again.cache, slots.prompts.cache, strict=True):
            same(layer.key[u, :, :, :X], read_once.key[q])
            same(layer.value[u, :, :X], read_once.value[q])


def test_rows_that_end_make_room_for_the_next_while_others_sample(stage):
    params = stage.policy(*LEAVING)
    prompts = [*"ADFGADF"]
    ticks = {}
    finished = {}
    for slots in (0, 1, 3):
        programs = Programs(stage, slots=slots)
        found = jax.device_get(programs.think(params, programs.open(params, *prompts)))
        assert not found.unfinished and not found.due_B.any()
        finished[slots] = closed(programs.settings, found)
        counts = jax.tree.map(lambda x: int(x[0]), found.counts)
        ticks[slots] = counts.ticks
        assert counts.slot_ticks == counts.ticks * (slots or ROWS)
        assert counts.sampled == (found.trajectory.source_BT == Source.POLICY).sum() == 18
        assert counts.waiting == counts.absorbed == counts.host_calls == 0
    assert ticks == {0: 6, 1: 18, 3: 7}
    for slots in (1, 3):
        for name in ("token_BT", "source_BT", "step_BT", "status_B", "length_B"):
            found, wanted = (getattr(finished[n], name) for n in (slots, 0))
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        np.testing.assert_allclose(finished[slots].logp_BT, finished[0].logp_BT, atol=1e-5)


LATER = ("A B </search>", "C D E </search>", "F G H I </search>", "J K L M N O P Q R </answer>")


def test_the_host_is_asked_once_enough_of_the_slots_that_could_sample_call(stage, monkeypatch):
    params = stage.policy(*LATER)
    for share, calling, thinking, ticks in ((64, 1, 3, 2), (2, 2, 2, 3), (0, 3, 0, 9)):
        monkeypatch.setattr(thinking_module, "SLOTS_PER_CALL", share)
        programs = Programs(stage, rows=4)
        slots = programs.think(params, programs.open(params, *"ACFJ"))
        phases = slots.phase_U.tolist()
        assert phases.count(Phase.CALLING) == calling and phases.count(Phase.THINKING) == thinking
        assert slots.counts.ticks == ticks


def test_while_rows_wait_the_host_is_asked_again_after_some_tokens(stage, monkeypatch):
    monkeypatch.setattr(thinking_module, "POLL_TICKS", 3)
    params = stage.policy(*LATER)
    programs = Programs(stage, rows=4)
    slots = programs.think(params, programs.open(params, "A", "J", "J", "J"))
    slots = programs.read(params, slots, ready=[False] * 4)
    assert slots.has(Phase.WAITING).tolist() == [True, False, False, False]
    after = programs.think(params, slots)
    assert after.counts.ticks - slots.counts.ticks == after.counts.waiting == 3
    assert after.has(Phase.THINKING).sum() == 3


def slots_of(stage, *, rows, calls):
    """Slots that hold these rows after so many calls, and nothing else."""
    prompt = stage.span(*"A" * (1 + max(rows)), width=stage.settings.prompt_tokens)
    opening = partial(open_slots, stage.model, stage.settings, slots=len(rows), group_size=1)
    shapes = jax.eval_shape(opening, stage.policy("A B"), prompt)
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return blank.replace(row_U=jnp.array(rows), calls_U=jnp.array(calls))


drawn = jax.jit(draw)


def test_a_boundarys_draws_depend_on_the_row_and_its_calls_alone(stage):
    rows, calls = [*range(64)], [1 + row % 3 for row in range(64)]
    inputs = inputs_of(65, probability=jnp.float32(0.5), noise=jnp.float32(0.5))
    wants_U, pick_U = drawn(inputs, slots_of(stage, rows=rows, calls=calls))
    again = drawn(inputs, slots_of(stage, rows=rows[::-1], calls=calls[::-1]))
    same((wants_U, pick_U), jax.tree.map(lambda x: x[::-1], again))
    few = drawn(inputs, slots_of(stage, rows=rows[5:7], calls=calls[5:7]))
    same(few, (wants_U[5:7], pick_U[5:7]))
    # rows of another shard, and other boundaries of the same rows, draw otherwise
    for other in (
        drawn(inputs.replace(row_B=inputs.row_B + 65), slots_of(stage, rows=rows, calls=calls)),
        drawn(inputs, slots_of(stage, rows=rows, calls=[each + 1 for each in calls])),
    ):
        assert (other[0] != wants_U).any() and (other[1] != pick_U).any()


def test_boundaries_retrieve_and_pick_at_random_as_often_as_asked(stage):
    rows = [*range(400)]
    slots = slots_of(stage, rows=rows, calls=[1, 2] * 200)
    inputs = inputs_of(401, probability=jnp.float32(0.3), noise=jnp.float32(0.6))
    wants_U, pick_U = drawn(inputs, slots)
    random_U = pick_U >= 0
    assert (pick_U[~random_U] == -1).all() and (pick_U < 1).all()
    assert abs(wants_U.mean() - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5
    assert abs(random_U.mean() - 0.6) < 4 * (0.6 * 0.4 / 400) ** 0.5
    assert abs(random_U[wants_U].mean() - 0.6) < 4 * (0.6 * 0.4 / wants_U.sum()) ** 0.5

    always = inputs.replace(probability=jnp.float32(1))
    assert drawn(always, slots)[0].all()
    assert not drawn(always.replace(probability=jnp.float32(0)), slots)[0].any()
    hybrid_B = jnp.arange(401) % 4 >= 2
    same(drawn(always.replace(hybrid_B=hybrid_B), slots)[0], hybrid_B[:400])
    once = drawn(always.replace(last_retrieval=jnp.int32(1)), slots)[0]
    assert once.tolist() == [True, False] * 200
