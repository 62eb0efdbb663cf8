"""The outcome reward: formats, bonus, retrieved spans, and the token F1 of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.scoring.answers import token_f1
from rapo_jax.tasks import failure_kind, is_correct, outcome_reward
from rapo_jax.text.protocol import split_steps

THINK = "<think>t</think>"
SEARCH = "<search>Dorim mentor</search><result>Dorim mentor Kavel</result>"
PYTHON = "<python>print(1)</python><result>1</result>"
ANSWER = "<answer>so \\boxed{Kavel}</answer>"

TAGS = [f"<{slash}{name}>" for slash in ("", "/") for name in "think search python".split()]
TAGS += ["<result>", "</result>", "<retrieve>", "</retrieve>", "<answer>", "</answer>"]
pieces = st.sampled_from([*TAGS, "\\boxed{", "}", "{", "Kavel", " ", THINK, SEARCH, PYTHON, ANSWER])
responses = st.one_of(
    st.text(), st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=25).map("".join)
)
golds = st.lists(st.text(max_size=12), max_size=3)


@given(responses, golds)
def test_any_text_gets_a_reward_between_minus_one_and_one_point_one(text, gold):
    reward = outcome_reward(text, gold)
    assert reward == -1.0 or 0.0 <= reward <= 1.1
    assert (reward == -1.0) == (failure_kind(text) != "")
    if is_correct(text, gold):
        assert reward >= 1.0


@given(st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=15).map("".join))
def test_a_retrieved_span_never_changes_the_reward(inside):
    trace = inside.replace("<retrieve>", "").replace("</retrieve>", "")
    spans = f"<retrieve>{trace}</retrieve>"
    assert outcome_reward(THINK + SEARCH + spans + THINK + ANSWER, ["Kavel"]) == 1.0


@given(st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=15).map("".join))
def test_the_content_of_an_observation_never_changes_the_reward(inside):
    shown = inside
    for tag in ("result", "retrieve"):
        shown = shown.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    text = f"{THINK}<search>q</search><result>{shown}</result>{THINK}{ANSWER}"
    assert outcome_reward(text, ["Kavel"]) == 1.0


@given(st.text(alphabet="abcd the,.!", max_size=20), st.text(alphabet="abcd the,.!", max_size=20))
def test_token_f1_is_symmetric_and_one_for_the_same_answer(one, other):
    assert token_f1(one, other) == token_f1(other, one)
    assert token_f1(one, one) == float(bool(one.strip()))


def test_a_right_answer_after_both_tools_earns_the_bonus():
    assert outcome_reward(THINK + SEARCH + PYTHON + ANSWER, ["Kavel"]) == pytest.approx(1.1)


def test_one_tool_alone_earns_no_bonus():
    assert outcome_reward(THINK + SEARCH + ANSWER, ["Kavel"]) == 1.0
    assert outcome_reward(THINK + PYTHON + ANSWER, ["Kavel"]) == 1.0


def test_a_wrong_answer_after_both_tools_earns_nothing():
    assert outcome_reward(THINK + SEARCH + PYTHON + ANSWER, ["Dorim"]) == 0.0


def test_a_retrieved_python_call_does_not_earn_the_bonus():
    retrieved = f"<retrieve>{THINK}{PYTHON}</retrieve>"
    assert outcome_reward(THINK + SEARCH + retrieved + ANSWER, ["Kavel"]) == 1.0


def test_an_empty_python_call_does_not_earn_the_bonus():
    empty = "<python> </python><result>error: empty</result>"
    assert outcome_reward(THINK + SEARCH + empty + ANSWER, ["Kavel"]) == 1.0


def test_a_retrieved_call_without_its_result_does_not_make_the_format_bad():
    retrieved = "<retrieve><think>x<search>y</search></retrieve>"
    assert outcome_reward(THINK + retrieved + ANSWER, ["Kavel"]) == 1.0


def test_a_retrieved_answer_is_not_the_answer():
    retrieved = f"<retrieve>{THINK}<answer>\\boxed{{Kavel}}</answer></retrieve>"
    assert outcome_reward(THINK + retrieved, ["Kavel"]) == -1.0
    assert outcome_reward(THINK + retrieved + ANSWER, ["Kavel"]) == 1.0


def test_a_stray_retrieve_tag_of_the_policy_hides_nothing_before_a_real_trace():
    stray = THINK + "<retrieve>" + SEARCH + f"<retrieve>{PYTHON}</retrieve>" + ANSWER
    assert outcome_reward(stray, ["Kavel"]) == 1.0
    assert failure_kind(THINK + "<retrieve><search>q</search>" + SEARCH + ANSWER) != ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (ANSWER, "no think tags"),
        ("<think>t" + ANSWER, "unbalanced think tags"),
        ("t</think>" + THINK + ANSWER, "unbalanced think tags"),
        ("<think><think>t</think></think>" + ANSWER, "unbalanced think tags"),
        (THINK, "no answer"),
        (THINK + ANSWER + ANSWER, "more than one answer"),
        (THINK + "<answer>\\boxed{Kavel}", "unbalanced answer tags"),
        (THINK + "<answer>Kavel</answer>", "no boxed answer"),
        (THINK + "\\boxed{Kavel}<answer>Kavel</answer>", "no boxed answer"),
        (THINK + "<answer>\\boxed{Kavel</answer>", "no boxed answer"),
        (THINK + "<search>q</search>" + ANSWER, "search call without its result"),
        (THINK + PYTHON + "<python>1</python>x" + ANSWER, "python call without its result"),
        (THINK + "<search>q</search><result>r" + ANSWER, "search call without its result"),
        (THINK + "<search>q" + ANSWER, "unbalanced search tags"),
        ("", "no think tags"),
    ],
)
def test_a_bad_format_scores_minus_one_and_says_why(text, kind):
    assert failure_kind(text) == kind
    assert outcome_reward(text, ["Kavel"]) == -1.0
    assert not is_correct(text, ["Kavel"])


@pytest.mark.parametrize(
    "thought",
    [
        "first <search>, then <python>",
        "I write <answer> and </answer>",
        "no </search> needed, nor <search>x</search>",
        "<answer>\\boxed{Dorim}</answer>",
    ],
)
def test_a_tag_that_a_thought_names_is_text(thought):
    assert failure_kind(f"<think>{thought}</think>{ANSWER}") == ""
    assert outcome_reward(f"<think>{thought}</think>{ANSWER}", ["Kavel"]) == 1.0
    assert is_correct(f"<think>{thought}</think>{ANSWER}", ["Kavel"])


def test_a_call_with_its_result_inside_a_thought_is_a_call_beside_a_named_tag():
    inside = f"<think><answer> after {SEARCH} and {PYTHON} of <python></think>"
    assert outcome_reward(inside + ANSWER, ["Kavel"]) == pytest.approx(1.1)
    assert outcome_reward(f"<think>{SEARCH}{PYTHON}</think>{ANSWER}", ["Kavel"]) > 1.0


def test_a_tag_outside_of_thoughts_still_costs_the_format():
    assert failure_kind(f"{THINK}I use <search>{ANSWER}") == "unbalanced search tags"
    assert failure_kind(f"<think>use <search>{ANSWER}") == "unbalanced search tags"


@pytest.mark.parametrize("box", ["\\boxed 5", "\\boxed {5}", "\\fbox{5}", "$\\boxed5$"])
def test_each_form_of_a_box_holds_the_answer(box):
    assert outcome_reward(boxed(box), ["5"]) == 1.0


def test_a_system_of_equations_with_one_escaped_brace_is_boxed():
    assert failure_kind(boxed("\\boxed{\\left\\{ x = 1 \\right.}")) == ""


def test_a_result_may_follow_its_call_after_white_space():
    text = THINK + "<search>q</search>\n<result>r</result>" + ANSWER
    assert failure_kind(text) == ""


@pytest.mark.parametrize("rest", [".", ");", " \n\n", "</", "><!"])
def test_a_result_may_follow_the_rest_of_the_token_that_closed_its_call(rest):
    text = THINK + f"<search>q</search>{rest}<result> r</result>" + ANSWER
    assert failure_kind(text) == "" and outcome_reward(text, ["Kavel"]) == 1.0
    assert split_steps(text) == [text.removesuffix(ANSWER), ANSWER]


def test_a_call_is_without_its_result_where_that_of_another_call_follows():
    text = THINK + "<search>q</search>.<search>r</search>.<result> r</result>" + ANSWER
    assert failure_kind(text) == "search call without its result"


def boxed(content: str) -> str:
    return f"{THINK}<answer>{content}</answer>"


def test_braces_nest_inside_the_box():
    assert outcome_reward(boxed("\\boxed{\\frac{1}{2}}"), ["frac12"]) == 1.0


def test_the_last_box_counts():
    assert outcome_reward(boxed("\\boxed{Dorim} no \\boxed{Kavel}"), ["Kavel"]) == 1.0


def test_partial_overlap_scores_the_harmonic_mean_of_precision_and_recall():
    precision, recall = 2 / 3, 2 / 4
    expected = 2 * precision * recall / (precision + recall)
    reward = outcome_reward(boxed("\\boxed{red green blue}"), ["red green pink black"])
    assert reward == pytest.approx(expected)


def test_repeated_tokens_count_only_as_often_as_in_the_gold_answer():
    assert token_f1("red red", "red blue") == pytest.approx(0.5)


def test_the_best_gold_answer_counts():
    assert outcome_reward(boxed("\\boxed{Kavel}"), ["Dorim", "Kavel of Dorim", "Kavel"]) == 1.0


def test_case_articles_punctuation_and_spaces_do_not_matter():
    assert token_f1(" The  Lord, of the\tRings!", "lord of rings") == 1.0


def test_an_answer_that_is_only_an_article_or_punctuation_can_still_be_right():
    assert token_f1("A", "a") == 1.0
    assert token_f1("+", "+") == 1.0
    assert token_f1("A", "B") == 0.0


def test_yes_and_no_must_match_exactly():
    assert token_f1("yes", "Yes.") == 1.0
    assert token_f1("yes it is", "yes") == 0.0
    assert token_f1("no", "no man") == 0.0


def test_an_empty_box_is_well_formed_and_wrong():
    assert failure_kind(boxed("\\boxed{}")) == ""
    assert outcome_reward(boxed("\\boxed{}"), ["Kavel", ""]) == 0.0


def test_without_gold_answers_nothing_is_right():
    assert outcome_reward(boxed("\\boxed{Kavel}"), []) == 0.0


def test_very_long_malformed_text_is_scored_too():
    for tag in ("<retrieve>", "</search><result>", "\\boxed{", "<think>"):
        text = THINK + tag * 20_000 + ANSWER
        assert -1.0 <= outcome_reward(text, ["Kavel"]) <= 1.1


LOUD = "<think>a</think><loud>hey</loud><result> HEY</result>"
BOB = "<think>b</think><answer>\\boxed{Bob}</answer>"


def test_a_call_of_a_users_tool_must_have_its_result_and_earns_no_bonus():
    assert outcome_reward(LOUD + BOB, ["Bob"], user_tools=("loud",)) == 1.0
    python = "<think>a</think><python>1</python><result> 1</result>"
    assert outcome_reward(python + LOUD + BOB, ["Bob"], user_tools=("loud",)) == 1.0
    assert failure_kind("<loud>hey</loud>" + BOB, ("loud",)) == "loud call without its result"
    assert failure_kind(LOUD + "<loud>" + BOB, ("loud",)) == "unbalanced loud tags"
    assert not is_correct("<loud>hey</loud>" + BOB, ["Bob"], user_tools=("loud",))
    assert failure_kind("<loud>hey</loud>" + BOB) == ""  # of no tool: it is text


def test_one_text_in_place_of_the_gold_answers_is_refused():
    with pytest.raises(TypeError, match=r"gold_answers='Oslo': a sequence .* \['Oslo'\]"):
        outcome_reward("<think>t</think><answer>\\boxed{Oslo}</answer>", "Oslo")
