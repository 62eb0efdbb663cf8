"""The rollout: what every tape keeps to, Algorithm 1, and two drivers that write the same."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest

from rapo_jax.model.scoring import score
from rapo_jax.sampling.tapes import pieces, segments
from rapo_jax.text.protocol import STOPS, render_retrieved, without_retrieved
from rapo_jax.tools.observation import Observation
from rapo_jax.types import Source, Status

GROUP, HYBRID = 4, 2
"""As the shared rollouts have them; see conftest."""


def policy_and_retrieved(trajectory, b):
    """Sources of a row's steps in order, PAD beyond them."""
    length = trajectory.length_B[b]
    pairs = zip(trajectory.step_BT[b, :length], trajectory.source_BT[b, :length], strict=True)
    steps = {}
    for step, source in pairs:
        if source in (Source.POLICY, Source.RETRIEVED):
            steps.setdefault(int(step), set()).add(Source(int(source)))
    return [steps[step] for step in sorted(steps)]


def same(left, right, *, rounding=0.0):
    def compare(found, wanted):
        if rounding and found.dtype.kind == "f":
            np.testing.assert_allclose(found, wanted, atol=rounding)
        else:
            np.testing.assert_array_equal(found, wanted)

    jax.tree.map(compare, left, right)


def rows_of(trajectory, index):
    return jax.tree.map(lambda x: x[index], trajectory)


def test_the_rollouts_of_this_file_end_in_every_way_and_retrieve(many):
    statuses = Counter(int(status) for each in many for status in each.status_B)
    ends = (Status.ANSWERED, Status.STOPPED, Status.OUT_OF_CALLS, Status.OUT_OF_TOKENS)
    assert set(statuses) == set(ends)
    assert sum((each.source_BT == Source.RETRIEVED).any(axis=1).sum() for each in many) > 20


def test_padding_is_exactly_where_the_row_has_ended(many):
    for each in many:
        beyond_BT = np.arange(each.token_BT.shape[1]) >= each.length_B[:, None]
        np.testing.assert_array_equal(each.source_BT == Source.PAD, beyond_BT)
        assert not each.token_BT[beyond_BT].any()


def test_scoring_the_tapes_reproduces_log_probs_and_entropies(many, house):
    program = jax.jit(lambda params, token_BT: score(house.model, params, token_BT))
    for each in many[:3]:
        logp_BT, entropy_BT = map(np.asarray, program(house.params, each.token_BT))
        policy_BT = each.source_BT == Source.POLICY
        np.testing.assert_allclose(each.logp_BT[policy_BT], logp_BT[policy_BT], atol=1e-5)
        np.testing.assert_allclose(each.entropy_BT[policy_BT], entropy_BT[policy_BT], atol=1e-5)
        assert not each.logp_BT[~policy_BT].any() and not each.entropy_BT[~policy_BT].any()


def test_the_step_never_falls_and_never_skips_along_a_row(many):
    for each in many:
        rise_BT = np.diff(each.step_BT, axis=1)
        assert set(np.unique(rise_BT)) <= {0, 1}
        assert not each.step_BT[:, 0].any()
        # max_calls + 1 policy steps and a retrieval between each, counted from 0
        assert each.step_BT.max() <= 2 * 4


def test_row_b_belongs_to_question_b_over_group_size(many, house):
    for each in many[:2]:
        shape = (len(house.asked), GROUP, -1)
        token_QGT, source_QGT = each.token_BT.reshape(shape), each.source_BT.reshape(shape)
        for q, question in enumerate(house.asked):
            prompt = house.tokens.prompt_ids(house.system, question.question)
            assert (token_QGT[q, :, : len(prompt)] == prompt).all()
            assert ((source_QGT[q] == Source.PROMPT).sum(axis=1) == len(prompt)).all()
            assert (source_QGT[q, :, : len(prompt)] == Source.PROMPT).all()
        assert not each.step_BT[each.source_BT == Source.PROMPT].any()


def test_a_status_says_how_the_row_ended(many, house):
    T = many[0].token_BT.shape[1]
    for each in many:
        for b, status in enumerate(each.status_B):
            *_, last = segments(house.tokens, each, b)
            if status == Status.ANSWERED:
                assert last.source == Source.POLICY and last.text.endswith("</answer>")
            elif status == Status.STOPPED:
                assert each.token_BT[b, each.length_B[b] - 1] in house.tokens.eos_ids
            elif status == Status.OUT_OF_CALLS:
                assert last.source == Source.POLICY and last.text.endswith(STOPS[:2])
                calls = [s for s in segments(house.tokens, each, b) if s.source == Source.TOOL]
                assert len(calls) == house.settings.rollout.max_calls
            elif last.source == Source.POLICY and not last.text.endswith(STOPS):
                last_B = (each.source_BT[b] == Source.POLICY) & (each.step_BT[b] == last.step)
                full = each.length_B[b] == T
                assert full or last_B.sum() == house.settings.rollout.step_tokens


def test_both_drivers_write_identical_tapes(make_sampler, jitted, play):
    host = make_sampler(devices=1, driver="host")
    for seed in range(3):
        inputs = {"seed": seed, "probability": 0.7, "noise": 0.3}
        same(play(jitted, **inputs), play(host, **inputs))
    assert host.sampler.compiled == 0


def test_eight_devices_write_the_tapes_of_one(spread, jitted, play):
    for seed in range(3):
        inputs = {"seed": seed, "probability": 0.7, "noise": 0.3}
        same(play(spread, **inputs), play(jitted, **inputs), rounding=1e-5)


def test_texts_read_in_chunks_write_the_same_tapes(make_sampler, many, house, play):
    r = house.settings.rollout
    assert r.retrieved_tokens % 5 == 0 and r.observation_tokens % 5 > 0
    playing = make_sampler(devices=2, driver="jit", absorb_chunk=5)
    same(play(playing, seed=0), many[0], rounding=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(jitted, many, house, play):
    kept = [1, 6]
    others = [q if i in kept else house.questions[-1 - i] for i, q in enumerate(house.asked)]
    assert sum(a != b for a, b in zip(others, house.asked, strict=True)) == 6
    found = play(jitted, seed=0, questions=others)
    for question in kept:
        index = slice(question * GROUP, (question + 1) * GROUP)
        same(rows_of(found, index), rows_of(many[0], index))


def test_a_row_does_not_depend_on_the_size_of_its_batch(make_sampler, many, house, play):
    small = play(make_sampler(devices=1, driver="host"), seed=0, questions=house.asked[:2])
    same(small, rows_of(many[0], slice(0, 2 * GROUP)), rounding=1e-5)


def test_one_program_serves_every_plan(jitted, many, play):
    play(jitted, seed=3, probability=0.1, noise=0.5, hybrid=4, last_retrieval=1)
    assert many and jitted.sampler.compiled == 1


def test_on_policy_rows_never_retrieve_and_are_the_first_of_each_group(many):
    for each in many:
        retrieves_QG = (each.source_BT == Source.RETRIEVED).any(axis=1).reshape(-1, GROUP)
        assert not retrieves_QG[:, : GROUP - HYBRID].any()


def test_nothing_is_retrieved_before_the_first_step_nor_twice_in_a_row(jitted, play, house):
    widest = house.settings.rollout.retrieved_tokens
    each = play(jitted, seed=11, probability=1.0, hybrid=GROUP)
    retrievals = 0
    for b in range(len(each.length_B)):
        _, first, *rest = pieces(house.tokens, each, b)
        assert first.source == Source.POLICY
        for before, after in zip([first, *rest], rest, strict=False):
            if before.source == Source.RETRIEVED:
                assert after.source == Source.POLICY
            elif before.source == Source.TOOL and after.source == Source.POLICY:
                # every boundary retrieves here, unless the row has no room for its trace
                assert each.token_BT.shape[1] - after.start < widest
            retrievals += after.source == Source.RETRIEVED
    assert retrievals > 20


def test_a_retrieved_trace_is_a_step_of_its_own(many):
    for each in many:
        for b in range(len(each.length_B)):
            assert all(len(kinds) == 1 for kinds in policy_and_retrieved(each, b))


def test_about_probability_of_the_boundaries_retrieve(jitted, play):
    boundaries = retrieved = 0
    for seed in range(12):
        each = play(jitted, seed=100 + seed, probability=0.3, hybrid=GROUP)
        for b in range(len(each.length_B)):
            order = [next(iter(kind)) for kind in policy_and_retrieved(each, b)]
            # a boundary is where the row continues after an observation
            went_on = order.count(Source.POLICY) - 1
            boundaries += went_on
            retrieved += order.count(Source.RETRIEVED)
    error = (0.3 * 0.7 / boundaries) ** 0.5
    assert boundaries > 150
    assert abs(retrieved / boundaries - 0.3) < 3 * error


def test_an_observation_belongs_to_the_step_that_called_it(many, house):
    seen = 0
    for each in many:
        for b in range(len(each.length_B)):
            row = segments(house.tokens, each, b)
            for before, after in zip(row, row[1:], strict=False):
                if after.source == Source.TOOL:
                    assert before.source == Source.POLICY and before.step == after.step
                    assert before.text.endswith(STOPS[:2])
                    seen += 1
                if after.source == Source.RETRIEVED:
                    assert before.source == Source.TOOL and before.step == after.step - 1
    assert seen > 100


def retrieved_in(trajectory, house):
    """(text of S_<t without earlier traces, question, text of the trace) of every retrieval."""
    for b in range(len(trajectory.length_B)):
        history = ""
        for segment in segments(house.tokens, trajectory, b):
            if segment.source == Source.RETRIEVED:
                yield history, house.asked[b // GROUP], segment.text
            history += segment.text


def shown(house, trace):
    """A trace as a tape shows it, cut to `retrieved_tokens`."""
    ids = house.tokens.encode_protocol(render_retrieved(trace))
    room = house.settings.rollout.retrieved_tokens
    end = house.tokens.encode_protocol("</retrieve>")
    return house.tokens.decode(ids if len(ids) <= room else ids[: room - len(end)] + end)


def test_the_nearest_trace_to_the_state_is_retrieved(many, house):
    found = [hit for each in many for hit in retrieved_in(each, house)]
    texts = house.retriever.key_texts(
        [question.question for _, question, _ in found],
        [without_retrieved(history) for history, _, _ in found],
    )
    key_BE = house.encode(texts)
    for hit, (_, _, text) in zip(house.retriever.nearest(key_BE), found, strict=True):
        assert text == shown(house, hit.value)


def test_noise_one_retrieves_random_traces_all_over_the_buffer(jitted, play, house):
    items = house.retriever.buffer.step_traces
    inputs = {"probability": 1.0, "noise": 1.0, "hybrid": GROUP}
    texts = Counter(
        text
        for seed in range(6)
        for *_, text in retrieved_in(play(jitted, seed=200 + seed, **inputs), house)
    )
    known = Counter(shown(house, item.value) for item in items)
    assert set(texts) <= set(known)
    total = sum(texts.values())
    assert total > 100
    # longer traces are left out where a row is nearly full, so only a loose evenness is asked for
    assert len(texts) > 0.7 * len(known)
    assert max(texts[text] / known[text] for text in texts) < 8 * total / len(items)


def test_retrieving_whole_trajectories_happens_at_the_first_boundary_only(jitted, play):
    each = play(jitted, seed=5, probability=1.0, hybrid=GROUP, last_retrieval=1)
    retrieved_BT = each.source_BT == Source.RETRIEVED
    assert retrieved_BT.any()
    assert (each.step_BT[retrieved_BT] == 1).all()


def test_a_tool_that_times_out_is_an_observation_and_a_counter_and_the_row_goes_on(
    spread, spread_tools, play, house
):
    def slow(calls):
        return [Observation("error: timeout", "timeout") for _ in calls]

    spread_tools["python"], working = slow, spread_tools["python"]
    spread.environment.take_counts()
    try:
        each = play(spread, seed=0)
    finally:
        spread_tools["python"] = working
    counts = spread.environment.take_counts()
    assert counts["outcome/timeout"] == counts["python"] > 5
    followed = 0
    for b in range(len(each.length_B)):
        row = segments(house.tokens, each, b)
        for call, said, *after in zip(row, row[1:], row[2:], strict=False):
            if call.text.endswith("</python>"):
                assert said.source == Source.TOOL and said.text.startswith("<result> error")
                followed += after[0].source in (Source.POLICY, Source.RETRIEVED)
    assert followed > 5


def test_a_tool_that_breaks_on_the_host_raises_in_the_trainer_and_hangs_nothing(
    spread, spread_tools, play, many
):
    def broken(calls):
        raise OSError("the tool is gone")

    spread_tools["search"], working = broken, spread_tools["search"]
    try:
        with pytest.raises(RuntimeError, match="the tool is gone"):
            play(spread, seed=0)
    finally:
        spread_tools["search"] = working
    same(play(spread, seed=0), many[0], rounding=1e-5)  # and the next rollout is whole
