"""absorb and decode: what they write where, when a step ends, and parity with a plain pass."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.scoring import score
from rapo_jax.model.transformer import forward, init_params
from rapo_jax.rollout.spans import absorb, decode, open_tape
from rapo_jax.types import Source, Span, Status
from tests.models import SMALL_MODEL

ROWS, SLOTS, WIDTH = 7, 24, 10
"""One shape for all tests of the script, so that it is compiled once."""


@pytest.fixture(scope="module", params=[WIDTH, 4], ids=["whole spans", "chunks of 4"])
def programs(stage, request):
    """Compiled (open, absorb as TOOL, greedy decode) of the scripted model."""
    opening = partial(open_tape, stage.model, group_size=1, max_tokens=SLOTS, slack=WIDTH)
    reading = partial(absorb, stage.model, source=Source.TOOL, chunk=request.param)

    def deciding(params, tape):
        how = {"step_tokens": WIDTH, "temperature": 0.0}
        key_B = jax.random.split(jax.random.key(0), ROWS)
        return decode(stage.model, params, tape, key_B, stage.boundary, **how)

    return jax.jit(opening), jax.jit(reading), jax.jit(deciding)


def prompts(stage, *texts):
    return stage.span(*texts, *["V"] * (ROWS - len(texts)), width=WIDTH)


def spans(stage, *texts):
    return stage.span(*texts, *[""] * (ROWS - len(texts)), width=WIDTH)


def played(stage, programs, params, *texts, read=()):
    """Host copies of the tape after the prompts, some spans, and one decode."""
    opening, reading, deciding = programs
    tape = opening(params, prompts(stage, *texts))
    for each in read:
        tape = reading(params, tape, spans(stage, *each))
    return jax.device_get(deciding(params, tape))


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
def steps(stage, programs):
    return played(stage, programs, stage.policy(*SCRIPTS), *"ABCEGI", "<")


@pytest.mark.parametrize(
    ("row", "status", "tag"),
    [
        (0, Status.RUNNING, 0),
        (1, Status.RUNNING, 1),
        (2, Status.ANSWERED, 2),
        (3, Status.STOPPED, -1),
        (4, Status.OUT_OF_TOKENS, -1),
        (5, Status.RUNNING, 1),
        (6, Status.OUT_OF_TOKENS, -1),
    ],
)
def test_a_step_ends_where_its_script_does_with_the_right_status(stage, steps, row, status, tag):
    tape, span, tag_B = steps
    endless = {4: ["H", "G"] * 5, 6: [*"/python>", "pad", "pad"]}
    wanted = endless.get(row, SCRIPTS[row].split()[1:])
    assert stage.names(span.token_BX[row, : span.length_B[row]]) == " ".join(wanted)
    assert span.length_B[row] == len(wanted)
    assert tape.trajectory.status_B[row] == status
    assert tag_B[row] == tag


def test_decode_writes_its_tokens_behind_each_row_and_nothing_else(stage, steps):
    tape, span, _ = steps
    found = tape.trajectory
    for b, length in enumerate(span.length_B):
        written_T = (np.arange(SLOTS) >= 1) & (np.arange(SLOTS) < 1 + length)
        np.testing.assert_array_equal(found.source_BT[b] == Source.POLICY, written_T)
        np.testing.assert_array_equal(found.token_BT[b, 1 : 1 + length], span.token_BX[b, :length])
        assert found.length_B[b] == 1 + length
        for values_T in (found.logp_BT[b], found.entropy_BT[b]):
            assert not values_T[~written_T].any()
        assert (found.entropy_BT[b, written_T] > 0).all()
        assert (found.logp_BT[b, written_T] < 0).all()


def test_a_step_at_the_end_of_its_row_is_out_of_tokens_unless_it_was_finished(stage, programs):
    params = stage.policy("A B C D E", "F G H </answer>", "I J K </search>", "L M end")
    many = " ".join(["V"] * WIDTH)
    read = ([many] * 4, ["A", "F", "I", "L"])  # 21 slots are taken then
    tape, span, tag_B = played(stage, programs, params, *[many] * 4, read=read)
    written = [stage.names(span.token_BX[b, : span.length_B[b]]) for b in range(4)]
    assert written == ["B C D", "G H </answer>", "J K </search>", "M end"]
    assert tag_B[:4].tolist() == [-1, 2, 0, -1]
    endings = [Status.OUT_OF_TOKENS, Status.ANSWERED, Status.RUNNING, Status.STOPPED]
    assert tape.trajectory.status_B[:4].tolist() == endings

    later, span, _ = jax.device_get(programs[2](params, tape))
    assert not span.length_B[:4].any()  # the call stands, but there is no slot left to go on
    endings[2] = Status.OUT_OF_TOKENS
    assert later.trajectory.status_B[:4].tolist() == endings
    np.testing.assert_array_equal(later.trajectory.token_BT[:4], tape.trajectory.token_BT[:4])


def test_rows_that_are_not_running_and_empty_spans_stay_as_they_are(stage, programs, steps):
    opening, reading, deciding = programs
    tape = steps[0]
    params = stage.policy(*SCRIPTS)
    again = jax.device_get(reading(params, tape, spans(stage)))
    for found, wanted in zip(
        jax.tree.leaves((again.trajectory, again.hidden_BD)),
        jax.tree.leaves((tape.trajectory, tape.hidden_BD)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
    later, span, _ = jax.device_get(deciding(params, tape))
    ended_B = tape.trajectory.status_B != Status.RUNNING
    assert ended_B.tolist() == [False, False, True, True, True, False, True]
    assert (span.length_B[ended_B] == 0).all()
    for found, wanted in zip(
        jax.tree.leaves(later.trajectory), jax.tree.leaves(tape.trajectory), strict=True
    ):
        np.testing.assert_array_equal(found[ended_B], wanted[ended_B])


def test_a_span_that_does_not_fit_ends_its_row_and_is_not_read(stage, programs):
    opening, reading, _ = programs
    params = stage.policy("A B")
    nine = " ".join(["V"] * 9)
    tape = opening(params, prompts(stage, nine, nine, nine))
    tape = reading(params, tape, spans(stage, nine, nine, "V V"))
    before = jax.device_get(tape)
    texts = ("A B C D E F", "A B C D E F G", nine)
    found = jax.device_get(reading(params, tape, spans(stage, *texts)))
    assert found.trajectory.length_B[:3].tolist() == [24, 18, 20]
    statuses = [Status.RUNNING, Status.OUT_OF_TOKENS, Status.RUNNING]
    assert found.trajectory.status_B[:3].tolist() == statuses
    np.testing.assert_array_equal(found.trajectory.token_BT[1], before.trajectory.token_BT[1])
    np.testing.assert_array_equal(found.hidden_BD[1], before.hidden_BD[1])


def test_a_span_is_written_with_its_source_and_the_tapes_step_and_padding_keeps_the_last(
    stage, programs, tape_text
):
    opening, reading, _ = programs
    params = stage.policy("A B")
    tape = opening(params, prompts(stage, "A B", "A"))
    tape = tape.replace(step_B=np.int32([2] + [0] * (ROWS - 1)))
    found = jax.device_get(reading(params, tape, spans(stage, "C D")).trajectory)
    assert tape_text(found)[:2] == ["[P0] A B [T2] C D", "[P0] A"]
    assert found.step_BT[0, 4:].tolist() == [2] * (SLOTS - 4)
    assert not found.step_BT[1].any() and not found.logp_BT.any()


BASE = dataclasses.replace(SMALL_MODEL, vocab=31, width=12, ffn=16, init_scale=0.4)
GROUPED = "grouped queries, bias, tied"
NORMED = "one kv head, query and key norms, untied"
VARIANTS = {
    GROUPED: BASE,
    NORMED: dataclasses.replace(BASE, kv_heads=1, qkv_bias=False, qk_norm=True, tied=False),
}


@pytest.mark.parametrize(("name", "chunk"), [(GROUPED, 8), (GROUPED, 3), (NORMED, 4)])
def test_absorbing_and_decoding_equal_one_pass_over_the_tokens_they_wrote(stage, name, chunk):
    model = VARIANTS[name]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.4 * rng.standard_normal(leaf.shape)) + (leaf.ndim == 1),
        jax.eval_shape(lambda: init_params(model, jax.random.key(0))),
    )
    boundary = stage.boundary._replace(next_state_AV=stage.boundary.next_state_AV[:, : model.vocab])

    def span(length_B):
        token_BX = rng.integers(0, model.vocab, (4, 8), np.int32)
        return Span(token_BX, np.array(length_B, np.int32))

    def play(params, prompt, trace, observation):
        copy = sampling_copy(model, params)
        tape = open_tape(model, copy, prompt, group_size=2, max_tokens=40, slack=8)
        tape = absorb(model, copy, tape, trace, Source.RETRIEVED, chunk=chunk)
        key_B = jax.random.split(jax.random.key(1), 4)
        how = {"step_tokens": 6, "temperature": 1.0}
        tape, _, _ = decode(model, copy, tape, key_B, boundary, **how)
        tape = absorb(model, copy, tape, observation, Source.TOOL, chunk=chunk)
        found = tape.trajectory
        hidden_BTD = forward(model, params, found.token_BT)
        return found, tape.hidden_BD, hidden_BTD, score(model, params, found.token_BT)

    prompt = jax.tree.map(lambda x: x[:2], span([3, 8, 0, 0]))
    arguments = (params, prompt, span([8, 0, 5, 1]), span([0, 7, 2, 8]))
    found, hidden_BD, hidden_BTD, (logp_BT, entropy_BT) = jax.device_get(jax.jit(play)(*arguments))
    assert len(set(found.length_B.tolist())) > 2
    for b, length in enumerate(found.length_B):
        np.testing.assert_allclose(hidden_BD[b], hidden_BTD[b, length - 1], atol=1e-5)
    policy_BT = found.source_BT == Source.POLICY
    np.testing.assert_allclose(found.logp_BT[policy_BT], logp_BT[policy_BT], atol=1e-5)
    np.testing.assert_allclose(found.entropy_BT[policy_BT], entropy_BT[policy_BT], atol=1e-5)
    assert (found.token_BT[:2, :3] == prompt.token_BX[0, :3]).all()


def test_chunks_of_a_span_take_the_memory_of_one():
    model = dataclasses.replace(BASE, heads=4, kv_heads=2)
    params = jax.eval_shape(lambda: sampling_copy(model, init_params(model, jax.random.key(0))))
    shapes = jax.ShapeDtypeStruct
    prompt, span = (
        Span(shapes((2, width), np.int32), shapes((2,), np.int32)) for width in (8, 256)
    )
    opening = partial(open_tape, model, group_size=1, max_tokens=768, slack=256)
    tape = jax.eval_shape(opening, params, prompt)

    def temporaries(chunk):
        reading = partial(absorb, model, source=Source.TOOL, chunk=chunk)
        return jax.jit(reading).lower(params, tape, span).compile().memory_analysis()

    whole, cut = (temporaries(chunk).temp_size_in_bytes for chunk in (256, 32))
    scores = 2 * 4 * 256 * (768 + 256) * 4  # of all rows and heads, float32
    assert whole > scores and cut < whole / 7  # an eighth, and what both have


def test_sampling_holds_its_weights_once(stage):
    """A program that takes layers out of their stacks keeps both through its loop."""
    model = dataclasses.replace(BASE, width=64, ffn=1024, layers=4)
    boundary = stage.boundary._replace(next_state_AV=stage.boundary.next_state_AV[:, : model.vocab])
    shapes = jax.ShapeDtypeStruct
    prompt = Span(shapes((2, 8), np.int32), shapes((2,), np.int32))
    stacked = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    copy = jax.eval_shape(partial(sampling_copy, model), stacked)
    tape = jax.eval_shape(
        partial(open_tape, model, group_size=1, max_tokens=16, slack=8), copy, prompt
    )
    key_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))

    def temporaries(params, apart):
        def step(params, tape, key_B):
            how = {"step_tokens": 8, "temperature": 1.0}
            return decode(model, apart(params), tape, key_B, boundary, **how)

        compiled = jax.jit(step).lower(params, tape, key_B).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    weights = 4 * sum(x.size for x in jax.tree.leaves(copy["layers"]))
    assert temporaries(copy, lambda params: params) < weights / 4
    assert temporaries(stacked, partial(sampling_copy, model)) > weights
