"""Scores of answers: the two rules, and where they differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.scoring.answers import (
    RULES,
    AnswerScores,
    last_boxed,
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
        ("yes", ["yes it is"], WRONG, AnswerScores(0, pytest.approx(0.5), 0)),
        ("2010", ["10"], WRONG, AnswerScores(0.0, 0.0, 1.0)),
        # sign, point and slash are removed
        ("180", ["18.0"], WRONG, RIGHT),
        ("5", ["-5"], WRONG, RIGHT),
        ("12", ["1/2"], WRONG, RIGHT),
        ("18", ["18.0"], RIGHT, AnswerScores(0.0, 0.0, 0.0)),
    ],
)
def test_the_rules_differ_where_the_official_script_is_careless(
    prediction, golds, strict, official
):
    assert score_answer(prediction, golds, rule="strict") == strict
    assert score_answer(prediction, golds, rule="official") == official


@pytest.mark.parametrize(
    ("prediction", "gold", "f1"),
    [
        ("180", "18.0", 0.0),
        ("5", "-5", 0.0),
        ("5", "-$5", 0.0),
        ("5", ".5", 0.0),
        ("5/3", "53", 0.0),
        ("1.5 million", "15 million", 0.5),
        ("v1.5", "v15", 0.0),
        ("18", "18.0", 1.0),
        ("18.00 years", "18 years", 1.0),
        ("-18.0", "-18", 1.0),
        ("\u22125", "-5", 1.0),
        (".5", "0.5", 1.0),
        ("0", "-0.0", 1.0),
        ("1,000.0", "1000", 1.0),
        ("$-5.", "-$5", 1.0),
        ("1.0.0", "1.0", 0.0),
        ("10-20", "1020", 1.0),  # no sign: a hyphen is removed, as in words
        ("COVID-19", "covid19", 1.0),
        ("St. Mary's", "st marys", 1.0),
    ],
)
def test_strict_f1_keeps_the_value_of_a_number(prediction, gold, f1):
    _f1_is(prediction, gold, f1)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("\\text{Paris}", "Paris"),
        ("\\textbf{Barack} \\text {Obama}", "Barack Obama"),
        ("\\mathrm{yes}", "yes"),
        ("New~York", "New York"),
        ("12\\text{ cm}", "12 cm"),
    ],
)
def test_latex_around_the_words_of_an_answer_does_not_matter(prediction, gold):
    _f1_is(prediction, gold, 1.0)


def _f1_is(prediction, gold, f1):
    assert token_f1(prediction, gold) == token_f1(gold, prediction) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{\\left\\{ 1, 2 \\right.}", "\\left\\{ 1, 2 \\right."),
        (
            "\\boxed{\\left\\{\\begin{array}{l}x=1\\\\y=2\\end{array}\\right.}",
            "\\left\\{\\begin{array}{l}x=1\\\\y=2\\end{array}\\right.",
        ),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxed{1\\\\{2}}", "1\\\\{2}"),  # a line break before a brace
        ("\\\\boxed{5}", "5"),
        ("\\boxed {5}", "5"),
        ("\\fbox{5}", "5"),
        ("$\\boxed 5$.", "5"),
        ("so \\boxed 12.", "12"),
        ("\\boxed5", "5"),
        ("$\\boxed \\frac{\\sqrt{2}}{2}$", "\\frac{\\sqrt{2}}{2}"),
        ("\\boxed{5} and \\boxed 6", "5"),
        ("\\boxed 5 and \\fbox 6", "6"),
        ("\\boxed{5", None),
        ("\\boxed{5\\}", None),
        ("\\boxed", None),
        ("\\boxedx", None),
    ],
)
def test_the_content_of_the_last_box(text, content):
    assert last_boxed(text) == content


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
        ("\\boxed{1} \\fbox{2} \\boxed 3", "1"),
        ("\\boxed{\\left\\{ 1 \\right.}", "\\boxed{\\left\\{ 1 \\right.}"),
    ],
)
def test_the_official_answer_is_the_last_box_or_its_substitute(response, answer):
    assert official_answer(response) == answer


@given(st.text(alphabet="\\\\boxed{}text()ANSWER: \n", max_size=40))
def test_any_text_has_an_official_answer(response):
    assert isinstance(official_answer(response), str)
