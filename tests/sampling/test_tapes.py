"""From token tapes to text, and the lines of trajectories.jsonl."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from rapo_jax.sampling.tapes import (
    pieces,
    response_segments,
    response_text,
    segments,
    steps_without_retrieved,
    text_without_retrieved,
    trajectory_lines,
)
from rapo_jax.text.protocol import Segment
from rapo_jax.types import Source, Status

RESPONSE = (
    (Source.POLICY, 0, "<think> mentor</think><search> Dorim mentor</search>"),
    (Source.TOOL, 0, "<result> Dorim mentor Zizaz</result>"),
    (Source.RETRIEVED, 1, "<retrieve><think> done</think></retrieve>"),
    (Source.POLICY, 2, "<think> done</think><answer>\\boxed{ Zizaz}</answer>"),
)


def test_pieces_cover_each_row_without_gap_and_each_is_of_one_source_and_step(tapes, house):
    for b, length in enumerate(tapes.length_B):
        found = list(pieces(house.tokens, tapes, b))
        assert [found[0].start, found[-1].stop] == [0, length]
        for piece, following in zip(found, found[1:], strict=False):
            assert piece.stop == following.start
            assert (piece.source, piece.step) != (following.source, following.step)
        for piece in found:
            assert set(tapes.source_BT[b, piece.start : piece.stop]) == {piece.source}
            assert set(tapes.step_BT[b, piece.start : piece.stop]) == {piece.step}


def test_two_policy_steps_in_a_row_are_two_pieces(tapes, house):
    # an observation of no token would leave them side by side
    tape = tapes.replace(
        source_BT=np.full((1, 4), Source.POLICY),
        step_BT=np.array([[0, 0, 1, 1]]),
        length_B=np.array([4]),
    )
    found = pieces(house.tokens, tape, 0)
    assert [(p.step, p.start, p.stop) for p in found] == [(0, 0, 2), (1, 2, 4)]


def test_segments_are_the_response_without_the_prompt(tapes, house):
    for b, length in enumerate(tapes.length_B):
        row = segments(house.tokens, tapes, b)
        assert Source.PROMPT not in {segment.source for segment in row}
        wanted = [
            (source, step, b"".join(house.tokens.bytes_V[tapes.token_BT[b, t]] for t in slots))
            for (source, step), slots in itertools.groupby(
                range(length), lambda t, b=b: (tapes.source_BT[b, t], tapes.step_BT[b, t])
            )
            if source != Source.PROMPT
        ]
        assert row == [(who, s, text.decode("utf-8", "replace")) for who, s, text in wanted]


def test_what_is_judged_leaves_retrieved_traces_out():
    row = [Segment(*part) for part in RESPONSE]
    assert text_without_retrieved(row) == "".join(RESPONSE[i][2] for i in (0, 1, 3))


def test_own_steps_join_each_call_with_its_observation():
    row = [Segment(*part) for part in RESPONSE]
    assert steps_without_retrieved(row) == [RESPONSE[0][2] + RESPONSE[1][2], RESPONSE[3][2]]


@pytest.fixture(scope="module")
def lines(tapes, house):
    """The dump of the shared rollout, parsed."""
    rows = len(tapes.length_B)
    numbers = {name: np.arange(rows) / 10 for name in ("reward_B", "advantage_B", "retrieval_B")}
    written = trajectory_lines(
        house.tokens,
        tapes,
        [question for question in house.asked for _ in range(4)],
        labels={"step": 6, "stage": "rl"},
        hybrid_B=np.arange(rows) % 4 > 1,
        off_policy_B=np.arange(rows) % 4 == 0,
        has_entropy_B=np.arange(rows) > 0,
        z_BS=np.arange(rows * 8).reshape(rows, 8) / 100,
        **numbers,
    )
    return [json.loads(line) for line in written.splitlines()]


def test_every_row_is_one_line_that_says_what_it_was_and_what_it_earned(lines, tapes, house):
    assert len(lines) == len(tapes.length_B)
    for b, line in enumerate(lines):
        question = house.asked[b // 4]
        assert (line["step"], line["stage"], line["row"]) == (6, "rl", b)
        assert line["question"] == question.question and line["question_id"] == question.id
        assert line["answers"] == list(question.answers)
        assert line["hybrid"] is (b % 4 > 1) and line["off_policy"] is (b % 4 == 0)
        assert line["status"] == Status(tapes.status_B[b]).name
        assert line["reward"] == line["advantage"] == line["retrieval_reward"] == b / 10


def test_segments_of_a_line_hold_tokens_entropies_and_the_reward_of_a_retrieval(lines, tapes):
    retrieved = 0
    for b, line in enumerate(lines):
        assert line["segments"][0]["source"] == "PROMPT"
        entropies = []
        for segment in line["segments"]:
            policy = segment["source"] == "POLICY" and b > 0
            assert (segment["entropy"] is not None) is policy
            assert (segment["token_entropy"] is not None) is policy
            if policy:
                assert len(segment["token_entropy"]) == len(segment["tokens"])
                mean = np.mean(segment["token_entropy"])
                assert segment["entropy"] == pytest.approx(mean, abs=1e-3)
                entropies += segment["token_entropy"]
            if segment["source"] == "RETRIEVED":
                assert segment["z"] == pytest.approx((b * 8 + segment["step"]) / 100)
                retrieved += 1
            else:
                assert segment["z"] is None
        wanted = tapes.entropy_BT[b][(tapes.source_BT[b] == Source.POLICY) & (b > 0)]
        np.testing.assert_allclose(entropies, wanted, atol=1e-3)
    assert retrieved > 5


def test_a_response_leaves_out_the_end_of_sequence_which_logs_show(tapes, house, lines):
    end = house.tokens.decode(house.tokens.eos_ids[:1])
    stopped = 0
    for b, line in enumerate(lines):
        shown = segments(house.tokens, tapes, b)
        kept = response_segments(house.tokens, tapes, b)
        ended = tapes.token_BT[b, tapes.length_B[b] - 1] in house.tokens.eos_ids
        stopped += ended
        whole = "".join(segment.text for segment in kept) + end * ended
        assert whole == "".join(segment.text for segment in shown)
        assert whole == "".join(part["text"] for part in line["segments"][1:])
        assert all(segment.text for segment in kept)
        assert response_text(house.tokens, tapes, b) == text_without_retrieved(kept)
    assert 0 < stopped < len(lines)


def test_a_turn_of_a_chat_template_ends_in_a_text_that_need_not_be_an_end_of_sequence(house, tapes):
    protocol = dataclasses.replace(house.tokens.protocol, turns=True, stops=("</answer>",))
    in_turns = dataclasses.replace(house.tokens, protocol=protocol)
    row = next(
        b for b in range(len(tapes.length_B)) if tapes.status_B[b] == Status.ANSWERED
        and house.tokens.decode([tapes.token_BT[b, tapes.length_B[b] - 1]]) == "</answer>"
    )  # fmt: skip
    whole = response_text(house.tokens, tapes, row)
    assert whole.endswith("</answer>")
    assert response_text(in_turns, tapes, row) == whole.removesuffix("</answer>")
