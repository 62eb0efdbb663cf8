"""Observations of a search: cut at a passage border, and harmless to the protocol."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.search.passages import Passage, passage_of, render_passages
from rapo_jax.text.protocol import render_result, tags

ANYTHING = st.text(max_size=20)
passages = st.lists(st.builds(Passage, ANYTHING, ANYTHING), min_size=1, max_size=4)


def room_for(characters):
    return lambda text: len(text) <= characters


def test_passages_are_numbered_lines_of_title_and_text():
    found = [Passage("Ada", "born\nin  Dorim"), Passage("", "plain")]
    assert render_passages(found, room_for(100)) == "[1] Ada: born in Dorim\n[2] plain"


def test_passages_without_room_are_left_out_whole():
    found = [Passage("", "aaaa"), Passage("", "bbbb"), Passage("", "cccc")]
    lines = ["[1] aaaa", "[2] bbbb", "[3] cccc"]
    for kept in (1, 2, 3):
        whole = "\n".join(lines[:kept])
        for spare in (0, 5):
            assert render_passages(found, room_for(len(whole) + spare)) == whole


def test_a_first_passage_without_room_is_cut_at_a_word():
    found = [Passage("", "one two three four"), Passage("", "b")]
    assert render_passages(found, room_for(len("[1] one two thr"))) == "[1] one two"
    assert render_passages(found, room_for(0)) == "[1]"


@given(passages, st.integers(5, 60))
def test_a_rendering_has_room_and_is_a_prefix_of_the_whole(found, room):
    everything = render_passages(found, room_for(10**6))
    shown = render_passages(found, room_for(room))
    assert len(shown) <= room and everything.startswith(shown)


@given(st.lists(st.one_of(st.sampled_from([*tags(), "<|im_end|>", "<|im_start|>user"]), ANYTHING)))
def test_no_passage_can_close_the_result_or_forge_a_turn(pieces):
    text = render_passages([Passage("".join(pieces), "".join(pieces))], room_for(10**6))
    observation = render_result(text).removeprefix("<result>").removesuffix("</result>")
    assert not any(tag in observation for tag in tags())
    assert "<|" not in observation


@pytest.mark.parametrize(
    ("contents", "wanted"),
    [
        ('"Ada Lovelace"\nwas born', Passage("Ada Lovelace", "was born")),
        ('""Heroes" (album)"\nis one', Passage('"Heroes" (album)', "is one")),
        ('""\nhas no title', Passage("", "has no title")),
        ("Ada\nwas\nborn", Passage("Ada", "was\nborn")),
        ("only text", Passage("", "only text")),
        ('"title"\n ', Passage("", '"title"')),
    ],
)
def test_contents_are_a_title_and_a_text(contents, wanted):
    assert passage_of(contents) == wanted
