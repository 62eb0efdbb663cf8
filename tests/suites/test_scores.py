"""Scores under the two rules, and the kind of each failure."""

from __future__ import annotations

import pytest

from rapo_jax.scoring.judge import Judgement
from rapo_jax.suites.predictions import TOO_LONG, Sampled, prediction
from rapo_jax.suites.scores import FAILURES, RIGHT, score_predictions
from rapo_jax.tasks import Question

THINK = "<think>so</think>"
CALL = "<search>who</search><result> nobody</result>"


def answer(text):
    return rf"{THINK}<answer>It is \boxed{{{text}}}</answer>"


def row(text, *gold, metric="f1", ending="ANSWERED", calls=()):
    question = Question("q", "Who?", gold or ("red fox",), "made", "made")
    return prediction(question, metric, Sampled(text, ending, 9, calls), sample=0)


def scored(given, *, rule="strict", judge=None):
    (found,) = score_predictions([given], rule=rule, user_tools=(), judge=judge)
    return found


REACHED = {
    RIGHT: row(answer("Red fox.")),
    "partly right": row(answer("red hen")),
    "wrong": row(answer("a crow"), calls=[("search", "ok")]),
    "tool errors": row(THINK + CALL + answer("a crow"), calls=[("search", "error")]),
    "bad format": row(r"It is \boxed{a crow}", ending="STOPPED"),
    "no answer": row(THINK + "no idea", ending="STOPPED"),
    "out of tokens": row(THINK + "and so on and", ending="OUT_OF_TOKENS"),
    "out of calls": row(THINK + CALL + "<search>more</search>", ending="OUT_OF_CALLS"),
    "prompt too long": prediction(Question("q", "?", ("x",), "", ""), "f1", TOO_LONG, sample=0),
}


@pytest.mark.parametrize("kind", [RIGHT, *FAILURES])
def test_every_kind_of_failure_occurs(kind):
    assert scored(REACHED[kind])["kind"] == kind
    assert set(REACHED) == {RIGHT, *FAILURES}


def test_an_answer_tag_without_a_box_is_no_answer():
    assert scored(row(f"{THINK}<answer>crow</answer>"))["kind"] == "no answer"


def test_a_right_answer_after_a_failed_call_is_right():
    found = scored(row(THINK + CALL + answer("red fox"), calls=[("python", "timeout")]))
    assert (found["kind"], found["failed_calls"]) == (RIGHT, {"python": 1})


@pytest.mark.parametrize(
    ("given", "strict", "official"),
    [
        (row(r"no tags: \boxed{red fox}", ending="STOPPED"), 0.0, 1.0),  # format
        (row(answer("red fox"), "red fox", "vixen"), 1.0, 0.0),  # the last gold answer counts
        (row(answer("yes"), "yes indeed"), 0.0, 2 / 3),  # yes and no
        (row(answer("0.75"), "3/4", metric="math"), 1.0, 0.0),  # equivalence
        (row(answer(r"\frac34"), r"\frac{3}{4}", metric="math"), 1.0, 1.0),
        (row(answer("3/4"), "3/4", "1/2", metric="math"), 1.0, 0.0),  # the last one alone
        (row(answer("red fox")), 1.0, 1.0),
    ],
)
def test_official_and_strict_scores_differ_where_their_rules_do(given, strict, official):
    assert scored(given)["score"] == pytest.approx(strict)
    assert scored(given, rule="official")["score"] == pytest.approx(official)


def test_a_row_keeps_its_sample_and_can_be_scored_again_under_another_rule():
    given = row(r"no tags: \boxed{red fox}", ending="STOPPED")
    once = scored(given)
    assert (once["prediction"], once["boxed"], once["format"]) == ("", "red fox", "no think tags")
    assert {key: once[key] for key in given} == given
    again = scored(once, rule="official")
    assert again == scored(given, rule="official") and again["prediction"] == "red fox"
    assert set(again["scores"]) == {"exact", "f1", "contains"}


def test_a_maths_row_is_scored_by_maths_beside_the_text_metrics():
    found = scored(row(answer("1/2"), "0.5", metric="math"))
    assert found["scores"] == {"exact": 0.0, "f1": 0.0, "contains": 0.0, "math": 1.0}
    assert found["score"] == 1.0


def test_a_judge_scores_every_row_and_its_failures_are_no_verdicts():
    verdicts = iter(["correct", "incorrect", "failed", "unclear"])
    asked = []

    def judge(answered):
        asked.extend(answered)
        return [Judgement(next(verdicts), "") for _ in answered]

    rows = [row(answer(f"crow {n}")) for n in range(4)]
    found = score_predictions(rows, rule="strict", user_tools=(), judge=judge)
    assert [each["scores"]["judge"] for each in found] == [1.0, 0.0, None, None]
    assert [each.prediction for each in asked] == [f"crow {n}" for n in range(4)]
    assert asked[0].gold_answers == ["red fox"]
