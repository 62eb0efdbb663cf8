from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.buffer.keys import key_text

NAMES = r"\b[A-Z][a-z]+\b|\d+"


def test_a_key_is_the_question_followed_by_the_history():
    assert key_text("who?", "<think>a</think>", mask="", max_chars=99) == "who?\n<think>a</think>"


def test_a_key_before_any_step_is_the_question_alone():
    assert key_text("who?", "", mask="", max_chars=99) == "who?"


def test_masked_names_and_numbers_do_not_tell_two_questions_apart():
    first = key_text("zemlo of Dura ?", "<search>Dura 12</search>", mask=NAMES, max_chars=99)
    second = key_text("zemlo of Kilno ?", "<search>Kilno 7</search>", mask=NAMES, max_chars=99)
    assert first == second == "zemlo of # ?\n<search># #</search>"


def test_a_long_history_loses_its_oldest_part_and_the_question_stays():
    text = key_text("who?", "old " * 50 + "newest", mask="", max_chars=20)
    assert text == "who?\n" + ("old " * 50 + "newest")[-15:]
    assert len(text) == 20


def test_a_name_at_the_cut_is_masked_before_it_is_cut():
    text = key_text("q", "Abcdefgh", mask=NAMES, max_chars=6)
    assert text == "q\n#"


def test_a_question_longer_than_the_encoder_reads_keeps_its_beginning():
    for question in ("abcd", "abcdef"):
        assert key_text(question, "history", mask="", max_chars=4) == "abcd"


def test_a_question_that_leaves_no_room_for_history_is_the_key():
    assert key_text("abc", "history", mask="", max_chars=4) == "abc"
    assert key_text("ab", "history", mask="", max_chars=4) == "ab\ny"


@given(st.text(max_size=40), st.text(max_size=40), st.integers(1, 60))
def test_a_key_is_never_longer_than_allowed_and_begins_with_the_question(question, history, most):
    text = key_text(question, history, mask="", max_chars=most)
    assert len(text) <= most
    assert text.startswith(question[:most])
