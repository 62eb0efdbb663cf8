"""Scores of answers: the two rules, and where they differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.scoring.answers import (
    RULES,
    AnswerScores,
    official_answer,
    score_answer,
    token_f1,
)
from rapo_jax.tasks import outcome_reward

RIGHT = AnswerScores(1.0, 1.0, 1.0)
WRONG = AnswerScores(0.0, 0.0, 0.0)
answers = st.text(alphabet="abcd the,.!10", max_size=12)


@pytest.mark.parametrize("rule", RULES)
@given(prediction=st.text(max_size=20), golds=st.lists(st.text(max_size=12), max_size=3))
def test_any_answer_has_scores_between_zero_and_one(rule, prediction, golds):
    scores = score_answer(prediction, golds, rule=rule)
    assert all(0.0 <= score <= 1.0 for score in scores)
    if scores.exact and rule == "strict":
        assert scores == RIGHT


@given(answers, st.lists(answers, min_size=1, max_size=3))
def test_strict_f1_is_the_outcome_reward_of_a_well_formed_response(prediction, golds):
    response = f"<think>t</think><answer>\\boxed{{{prediction}}}</answer>"
    found = score_answer(prediction, golds, rule="strict").f1
    assert found == outcome_reward(response, golds)
    assert found == max(token_f1(prediction, gold) for gold in golds)


@pytest.mark.parametrize("rule", RULES)
def test_case_articles_punctuation_and_spaces_do_not_matter(rule):
    assert score_answer(" The  Lord, of the\tRings!", ["lord of rings"], rule=rule) == RIGHT


@pytest.mark.parametrize("rule", RULES)
def test_a_gold_answer_inside_a_longer_one_is_contained_and_not_exact(rule):
    scores = score_answer("it was Marie Curie", ["Marie Curie"], rule=rule)
    precision, recall = 2 / 4, 1.0
    wanted = 2 * precision * recall / (precision + recall)
    assert scores == AnswerScores(0.0, pytest.approx(wanted), 1.0)


@pytest.mark.parametrize(
    ("prediction", "golds", "strict", "official"),
    [
        # the script's loop keeps the values of the last gold answer
        ("Curie", ["Curie", "Marie Sklodowska"], RIGHT, WRONG),
        ("Curie", ["Marie Sklodowska", "Curie"], RIGHT, RIGHT),
        # an article is removed; the empty answer equals itself and is inside every other
        ("A", ["A"], RIGHT, AnswerScores(1.0, 0.0, 1.0)),
        ("B", ["A"], WRONG, AnswerScores(0.0, 0.0, 1.0)),
        ("", [""], WRONG, AnswerScores(1.0, 0.0, 1.0)),
        ("yes it is", ["yes"], AnswerScores(0, 0, 1), AnswerScores(0, pytest.approx(0.5), 1)),
        ("2010", ["10"], WRONG, AnswerScores(0.0, 0.0, 1.0)),
    ],
)
def test_the_rules_differ_where_the_official_script_is_careless(
    prediction, golds, strict, official
):
    assert score_answer(prediction, golds, rule="strict") == strict
    assert score_answer(prediction, golds, rule="official") == official


@pytest.mark.parametrize("rule", RULES)
def test_without_gold_answers_nothing_is_right(rule):
    assert score_answer("Curie", [], rule=rule) == WRONG


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule='lenient': choose one of strict, official"):
        score_answer("a", ["a"], rule="lenient")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>\\boxed{1}</think><answer>so \\boxed{2}</answer>", "2"),
        ("no format at all \\boxed{\\frac{1}{2}} and on", "\\frac{1}{2}"),
        ("\\boxed{1} and an open \\boxed{2", "1"),
        ("\\boxed{\\text{Marie Curie}}", "Marie Curie"),
        ("\\boxed{(\\text{A})}", "A"),
        ("I think\nANSWER: **Paris**\n", "Paris"),
        ("\n".join(map(str, range(20))), "\n".join(map(str, range(10, 20)))),
        ("", ""),
    ],
)
def test_the_official_answer_is_the_last_box_or_its_substitute(response, answer):
    assert official_answer(response) == answer


@given(st.text(alphabet="\\\\boxed{}text()ANSWER: \n", max_size=40))
def test_any_text_has_an_official_answer(response):
    assert isinstance(official_answer(response), str)
