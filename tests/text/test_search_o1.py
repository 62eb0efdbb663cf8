"""Search-o1: its transcripts, and the prompt in which the model reads the documents of a search."""

from __future__ import annotations

import pytest

from rapo_jax.tasks import outcome_reward
from rapo_jax.text.condensing import (
    NOTHING_HELPFUL,
    condensing_prompt,
    final_information,
    shortened,
)
from rapo_jax.text.protocol import Step
from rapo_jax.text.protocols import SEARCH_O1, find_protocol
from rapo_jax.text.tokens import load_tokens
from tests.text.test_chat import PUBLISHED, make
from tests.text.test_protocols import steps_of

TRANSCRIPT = (
    "I need the capital.\n<|begin_search_query|>capital of France<|end_search_query|>"
    "\n\n<|begin_search_result|>Paris is the capital.<|end_search_result|>\n\n"
    "So it is \\boxed{Paris}."
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return load_tokens(
        make(tmp_path_factory.mktemp("hub"), *PUBLISHED["qwen2.5"]), protocol=SEARCH_O1
    )


def test_a_transcript_is_cut_at_its_searches_and_ends_with_an_answer():
    protocol = find_protocol("search_o1")
    first, last = steps_of(protocol, TRANSCRIPT)
    assert protocol.parse(first) == [Step("search", "capital of France")]
    assert protocol.parse(last) == []
    assert protocol.render("Paris is the capital.") in TRANSCRIPT
    assert outcome_reward(TRANSCRIPT, ["Paris"], answers=protocol.answers) == 1.0


@pytest.mark.parametrize(
    ("text", "calls"),
    [("<|begin_search_query|>a", []), ("a<|end_search_query|>", []),
     ("<|begin_search_query|> <|end_search_query|>", []),
     ("<|begin_search_query|>a<|end_search_query|> <|begin_search_query|>b\n<|end_search_query|>",
      [Step("search", "b")])],
)  # fmt: skip
def test_an_unfinished_or_empty_search_calls_nothing(text, calls):
    assert SEARCH_O1.parse(text) == calls


def test_a_document_writes_no_token_of_the_protocol():
    assert SEARCH_O1.render("a<|end_search_result|>") == (
        "\n\n<|begin_search_result|>a< |end_search_result|><|end_search_result|>\n\n"
    )


def test_a_prompt_names_the_tokens_in_the_users_turn_alone(tokens):
    asked = tokens.decode(tokens.prompt_ids(SEARCH_O1.system, "who?"))
    assert "<|im_start|>system" not in asked
    assert "<|begin_search_query|>" in asked and "Question:\nwho?\n<|im_end|>" in asked


def test_the_reasoning_keeps_its_first_line_its_last_and_those_of_searches():
    lines = [f"thought {n}" for n in range(12)]
    lines[5] = "<|begin_search_query|>q<|end_search_query|>"
    assert shortened("\n\n".join(lines)).split("\n") == [
        "thought 0", "...", lines[5], "...", *lines[8:],
    ]  # fmt: skip
    assert shortened("") == ""


def test_a_prompt_holds_reasoning_query_and_documents(tokens):
    prompt, cut = condensing_prompt(tokens, "I think", "who?", "[1] Dorim", room=2000)
    assert not cut and "I think" in prompt and "who?" in prompt and "[1] Dorim" in prompt


@pytest.mark.parametrize("room", [1300, 1500, 2000])
def test_long_documents_are_cut_and_the_prompt_fits(tokens, room):
    history, documents = "so " * 4000 + "the end", "[1] Dorim " + "naïve 名 " * 4000
    prompt, cut = condensing_prompt(tokens, history, "q" * 9000, documents, room=room)
    assert cut and len(tokens.prompt_ids("", prompt)) <= room
    assert "the end" in prompt and "[1] Dorim" in prompt


@pytest.mark.parametrize(
    ("output", "information"),
    [("I see.\n**Final Information**\n\nParis.\n", "Paris."),
     ("**Final Information** one **Final Information**: two", "two"),
     ("no marker", NOTHING_HELPFUL), ("**Final Information**\n", NOTHING_HELPFUL),
     ("", NOTHING_HELPFUL)],
)  # fmt: skip
def test_what_follows_the_last_marker_is_the_information(output, information):
    assert final_information(output) == information
