"""A first batch that teaches nothing, and responses that the chat template begins."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax.config import RolloutSettings
from rapo_jax.sampling.tapes import (
    pieces,
    segments,
    steps_without_retrieved,
    text_without_retrieved,
)
from rapo_jax.text.protocol import Segment
from rapo_jax.text.tokens import load_tokens
from rapo_jax.train.measures import RowScores, common_failure
from rapo_jax.train.sft import encode_examples
from rapo_jax.types import Source, Status


def all_rows(tapes, reward, failure):
    rows = len(tapes.length_B)
    return RowScores(np.full(rows, reward), np.zeros(rows, bool), np.array([failure] * rows))


@pytest.mark.parametrize(
    ("failure", "status", "remedy"),
    [
        ("no think tags", Status.STOPPED, "prompt.template_arguments"),
        ("no answer", Status.STOPPED, "prompt.system, or use a cold start"),
        ("unbalanced think tags", Status.OUT_OF_TOKENS, "raise rollout.step_tokens"),
    ],
)
def test_a_batch_that_fails_as_one_is_reported_with_an_example(
    house, tapes, failure, status, remedy
):
    tapes = tapes.replace(status_B=np.full_like(tapes.status_B, status))
    said = common_failure(house.tokens, tapes, all_rows(tapes, -1.0, failure))
    assert f"all {len(tapes.length_B)} responses have the reward -1" in said
    assert failure in said and remedy in said and "\n" not in said
    text = text_without_retrieved(segments(house.tokens, tapes, 0))
    assert repr(text)[:50] in said


def test_a_batch_of_several_failures_or_rewards_is_not_reported(house, tapes):
    scores = all_rows(tapes, -1.0, "no answer")
    for other in (
        scores._replace(failure_B=np.where(np.arange(len(tapes.length_B)) == 0, "", "no answer")),
        scores._replace(reward_B=np.arange(len(tapes.length_B)) * 1.0),  # a user's reward
        all_rows(tapes, 0.0, ""),
    ):
        assert common_failure(house.tokens, tapes, other) == ""


@pytest.fixture(scope="module")
def thinking(house, make_sampler, tmp_path_factory):
    """(tokens, environment, tapes) of a rollout whose chat template opens the thought."""
    folder = tmp_path_factory.mktemp("thinking")
    house.tokens.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(
        house.tokens.tokenizer.chat_template + "{{ '<think>\\n' }}"
    )
    tokens = dataclasses.replace(house.tokens, tokenizer=load_tokens(folder).tokenizer, _frames={})
    playing = make_sampler(devices=1, driver="host", tokens=tokens)
    tapes = playing.sampler.sample(
        playing.params,
        jax.random.key(0),
        house.asked,
        group_size=4,
        n_hybrid=2,
        temperature=1.0,
        probability=0.7,
    )
    return tokens, playing.environment, tapes


def test_a_response_begins_with_the_thought_that_the_template_opened(thinking):
    tokens, environment, tapes = thinking
    for b, length in enumerate(tapes.length_B):
        row = segments(tokens, tapes, b)
        assert row[0].source == Source.POLICY and row[0].text.startswith("<think>\n")
        assert text_without_retrieved(row).startswith("<think>\n")
        assert steps_without_retrieved(row)[0].startswith("<think>\n")
        assert environment._history[b].startswith("<think>\n")
        prompt, first, *_ = pieces(tokens, tapes, b)
        assert not tokens.decode(tapes.token_BT[b, : prompt.stop]).endswith("<think>\n")
        assert first.start == prompt.stop < length
        # nothing that the policy did not sample is trained on
        opened = tapes.source_BT[b, first.start : first.start + tokens.opened(
            tapes.token_BT[b, tapes.source_BT[b] == Source.PROMPT]
        )[1]]  # fmt: skip
        assert len(opened) and set(opened) == {Source.PROMPT}


def test_examples_continue_what_the_template_opened(thinking):
    tokens, _, _ = thinking
    text = "<think> hm</think><answer>\\boxed{ x}</answer>"
    limits = RolloutSettings(observation_tokens=12, retrieved_tokens=20, max_tokens=96)
    found = encode_examples(
        tokens, [("who ?", [Segment(Source.POLICY, 0, text)])], limits, system="s"
    )
    length = found.length_B[0]
    written = tokens.decode(found.token_BT[0, :length])
    assert written.count("<think>") == 1
    assert written.endswith("<think>\nhm</think><answer>\\boxed{ x}</answer>")
    sampled = found.token_BT[0][found.source_BT[0] == Source.POLICY]
    assert tokens.decode(sampled) == "hm</think><answer>\\boxed{ x}</answer>"
