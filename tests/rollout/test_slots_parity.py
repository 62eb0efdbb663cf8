"""Slots of random models: parity with one pass over whole rows, and the memory of programs."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.scoring import score
from rapo_jax.model.transformer import forward, init_params
from rapo_jax.rollout.branching import branched, with_trees
from rapo_jax.rollout.reading import (
    HostAnswers,
    read,
)
from rapo_jax.rollout.slots import (
    Phase,
    fill,
    open_slots,
)
from rapo_jax.rollout.thinking import (
    think,
    think_token,
)
from rapo_jax.types import Source, Span
from tests.models import SMALL_MODEL
from tests.rollout.programs import inputs_of, same

BASE = dataclasses.replace(SMALL_MODEL, vocab=31, width=12, ffn=16, init_scale=0.4)


GROUPED = "grouped queries, bias, tied"


NORMED = "one kv head, query and key norms, untied"


VARIANTS = {
    GROUPED: BASE,
    NORMED: dataclasses.replace(BASE, kv_heads=1, qkv_bias=False, qk_norm=True, tied=False),
}


def endless(stage, model):
    """A boundary that no token is at: rows sample for ever."""
    next_state_AV = 0 * stage.boundary.next_state_AV[:, : model.vocab]
    return stage.boundary._replace(next_state_AV=next_state_AV, eos_W=jnp.array([model.vocab]))


@pytest.mark.parametrize(("name", "chunk"), [(GROUPED, 8), (GROUPED, 3), (NORMED, 4)])
def test_reading_and_sampling_equal_one_pass_over_the_tokens_they_wrote(stage, name, chunk):
    model, boundary = VARIANTS[name], endless(stage, VARIANTS[name])
    settings = dataclasses.replace(
        stage.settings, max_tokens=60, step_tokens=60, absorb_chunk=chunk
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.4 * rng.standard_normal(leaf.shape)) + (leaf.ndim == 1),
        jax.eval_shape(lambda: init_params(model, jax.random.key(0))),
    )

    def span(length_B):
        token_BX = rng.integers(0, model.vocab, (len(length_B), 8), np.int32)
        return Span(token_BX, np.array(length_B, np.int32))

    def play(params, prompt, observation, trace):
        copy = sampling_copy(model, params)
        slots = open_slots(model, settings, copy, prompt, slots=0, group_size=2)
        inputs = inputs_of(4, temperature=jnp.float32(1))
        think_once = partial(think_token, model, settings, boundary, copy, inputs)
        slots = jax.lax.fori_loop(0, 6, lambda _, now: think_once(now), fill(slots))
        every = jnp.ones(4, bool)
        ready = every.at[3].set(False)
        slots = read(model, settings, copy, slots, HostAnswers(ready, every, observation, trace))
        slots = jax.lax.fori_loop(0, 3, lambda _, now: think_once(now), slots)
        token_BT = slots.trajectory.token_BT
        return slots, forward(model, params, token_BT), score(model, params, token_BT)

    arguments = (params, span([3, 8]), span([1, 7, 2, 8]), span([8, 0, 5, 1]))
    slots, hidden_BTD, (logp_BT, entropy_BT) = jax.device_get(jax.jit(play)(*arguments))
    assert slots.length_U.tolist() == [3 + 9 + 9, 3 + 7 + 9, 8 + 7 + 9, 8 + 9]
    for u, length in enumerate(slots.length_U):
        np.testing.assert_allclose(slots.hidden_UD[u], hidden_BTD[u, length - 1], atol=1e-5)
    found = slots.trajectory
    policy_BT = found.source_BT == Source.POLICY
    assert (policy_BT.sum(axis=1) == 9).all()
    np.testing.assert_allclose(found.logp_BT[policy_BT], logp_BT[policy_BT], atol=1e-5)
    np.testing.assert_allclose(found.entropy_BT[policy_BT], entropy_BT[policy_BT], atol=1e-5)
    for b in range(4):
        prompt = arguments[1]
        length = prompt.length_B[b // 2]
        np.testing.assert_array_equal(found.token_BT[b, :length], prompt.token_BX[b // 2, :length])


def test_a_fork_writes_what_a_slot_that_was_put_into_its_state_by_hand_writes(stage):
    model, boundary = VARIANTS[GROUPED], endless(stage, VARIANTS[GROUPED])
    settings = dataclasses.replace(
        stage.settings, max_tokens=60, step_tokens=60, tree_rows=2, branch_probability=1.0
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.float32(0.4 * rng.standard_normal(leaf.shape)) + (leaf.ndim == 1),
        shapes_of(model),
    )
    inputs, every = inputs_of(4, temperature=jnp.float32(1)), jnp.ones(4, bool)
    prompt, observation, trace = (
        Span(rng.integers(0, model.vocab, (len(lengths), 8), np.int32), np.array(lengths, np.int32))
        for lengths in ([3, 8], [5, 7, 0, 0], [0, 4, 0, 0])
    )
    think_once = jax.jit(partial(think_token, model, settings, boundary, params, inputs))

    def sampled(slots, tokens):
        for _ in range(tokens):
            slots = think_once(slots)
        return slots

    opened = open_slots(model, settings, params, prompt, slots=4, group_size=2)
    slots = sampled(fill(with_trees(settings, opened, 2)), 6)
    assert slots.has(Phase.THINKING).tolist() == [True, True, False, False]  # the roots
    assert slots.row_U[:2].tolist() == [0, 2]
    called_U = slots.has(Phase.THINKING)
    slots = slots.replace(
        phase_U=jnp.where(called_U, Phase.CALLING, Phase.FREE), calls_U=1 * called_U
    )
    after = read(model, settings, params, slots, HostAnswers(called_U, every, observation, trace))
    forked = branched(model, settings, inputs, slots, after, reading=True)
    assert forked.row_U.tolist() == [0, 2, 1, 3] and forked.has(Phase.THINKING).all()
    assert forked.trees.reserved_1 == 0

    state = ("phase_U", "length_U", "begin_U", "step_U", "calls_U", "state_U", "hidden_UD", "cache")
    twice = {
        name: jax.tree.map(lambda x: np.concatenate([x[:2], x[:2]]), getattr(after, name))
        for name in state
    }
    tape = jax.tree.map(lambda x: np.asarray(x)[[0, 0, 2, 2]], after.trajectory)
    by_hand = after.replace(trees=None, trajectory=tape, row_U=np.array([0, 2, 1, 3]), **twice)
    found, wanted = (sampled(slots, 7).trajectory for slots in (forked, by_hand))
    same(found, wanted)
    assert (np.asarray(found.token_BT[0]) != found.token_BT[1]).any()  # by its own number


def shapes_of(model):
    return jax.eval_shape(lambda: sampling_copy(model, init_params(model, jax.random.key(0))))


def temporaries(program, *arguments):
    return jax.jit(program).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_reading_a_text_takes_the_memory_of_one_chunk_of_one_row(stage):
    model = dataclasses.replace(BASE, heads=4, kv_heads=2)
    params, shapes = shapes_of(model), jax.ShapeDtypeStruct

    def needed(chunk, *, rows):
        texts = {"observation_tokens": 256, "retrieved_tokens": 256, "absorb_chunk": chunk}
        settings = dataclasses.replace(stage.settings, max_tokens=768, **texts)
        prompt, text = (
            Span(shapes((rows, width), np.int32), shapes((rows,), np.int32)) for width in (8, 256)
        )
        opening = partial(open_slots, model, settings, slots=0, group_size=1)
        slots, flags = jax.eval_shape(opening, params, prompt), shapes((rows,), np.bool_)
        arguments = (params, slots, HostAnswers(flags, flags, text, text))
        return temporaries(partial(read, model, settings), *arguments)

    whole, cut, many = needed(256, rows=2), needed(32, rows=2), needed(32, rows=8)
    scores = 4 * 256 * 128 * 4  # of a row's heads over a block of positions, float32
    assert whole > 2 * scores and cut < whole / 7  # an eighth, and what both have
    assert many < 1.2 * cut


def test_sampling_holds_its_weights_once(stage):
    """A program that takes layers out of their stacks keeps both through its loop."""
    model = dataclasses.replace(BASE, width=64, ffn=1024, layers=4)
    settings = dataclasses.replace(stage.settings, max_tokens=16, prompt_tokens=8)
    shapes = jax.ShapeDtypeStruct
    prompt = Span(shapes((2, 8), np.int32), shapes((2,), np.int32))
    stacked = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    copy = shapes_of(model)
    opening = partial(open_slots, model, settings, slots=0, group_size=1)
    slots = jax.eval_shape(opening, copy, prompt)
    thinking = partial(think, model, settings, endless(stage, model))
    inputs = inputs_of(2)

    def sampling(params, slots):
        return thinking(params, inputs, slots)

    def cutting(params, slots):
        return thinking(sampling_copy(model, params), inputs, slots)

    weights = 4 * sum(x.size for x in jax.tree.leaves(copy["layers"]))
    assert temporaries(sampling, copy, slots) < weights / 4
    assert temporaries(cutting, stacked, slots) > weights
