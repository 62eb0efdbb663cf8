"""The protocol: any text parses, no content leaves its tags, splitting loses nothing."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.text import protocol
from rapo_jax.text.protocol import (
    STOPS,
    SYSTEM_PROMPT,
    Step,
    neutralise,
    parse_step,
    render_result,
    render_retrieved,
    split_steps,
    stops,
    tags,
    user_tool_names,
    with_tools,
    without_retrieved,
)

TAGS = tags()
pieces = st.sampled_from(
    [
        *TAGS,
        "<loud>",
        "</loud>",
        "<",
        "</",
        ">",
        "/",
        "|",
        "<|",
        "|>",
        "<|end|>",
        "search",
        " ",
        "\n",
        "x",
        "é",
    ]
)
any_text = st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join))


def call_step(thought: str, kind: str, call: str, observation: str) -> str:
    return f"<think>{thought}</think><{kind}>{call}</{kind}>" + render_result(observation)


@pytest.mark.parametrize("kind", ["search", "python", "answer"])
def test_a_step_has_the_kind_and_the_content_of_its_call(kind):
    assert parse_step(f"<think>hm</think>\n<{kind}> 1 + 1 </{kind}>") == Step(kind, "1 + 1")


def test_a_step_that_closed_nothing_is_a_stop():
    assert parse_step("<think>done</think><search>half a que") == Step("stop", "")


def test_an_empty_call_keeps_its_kind():
    assert parse_step("<search>  </search>") == Step("search", "")


def test_a_tag_closed_without_being_opened_is_an_empty_call():
    assert parse_step("2 + 2</python>") == Step("python", "")
    assert parse_step("<search>2 + 2</python>") == Step("python", "")


def test_the_last_closed_tag_counts_with_its_nearest_opening():
    text = "<search>one</search><python>two</python><search>three <search>four</search>\n"
    assert parse_step(text) == Step("search", "four")


def test_an_indented_program_is_dedented_as_a_whole():
    step = parse_step("<python>\n    for i in range(2):\n        print(i)\n</python>")
    assert step == Step("python", "for i in range(2):\n    print(i)")


def test_blanks_inside_the_strings_of_a_program_stay():
    program = "grid = '''#.#\n   \n#.#'''"
    assert parse_step(f"<python>\n{program}\n</python>") == Step("python", program)
    indented = "<python>\n  s = '''a\n   \n  b'''\n</python>"
    assert parse_step(indented) == Step("python", "s = '''a\n \nb'''")


@given(any_text)
def test_any_text_parses_and_its_kind_shows_whether_it_holds_a_stop(text):
    step = parse_step(text)
    assert (step.kind == "stop") == (not any(stop in text for stop in STOPS))
    assert step.content in text or step.kind == "python"
    assert step.kind != "stop" or step.content == ""


@given(any_text)
def test_neutralised_text_holds_no_tag_and_no_chat_token_and_stays_so(text):
    neutral = neutralise(text)
    assert not any(tag in neutral for tag in TAGS)
    assert "<|" not in neutral
    assert neutralise(neutral) == neutral
    assert neutral.replace(" ", "") == text.replace(" ", "")


def test_text_without_tags_is_not_touched():
    text = "if a < b and c </ d: <b>x</b> <searching> |> <think"
    assert neutralise(text) == text


@given(any_text)
def test_an_observation_cannot_leave_its_result_tags(observation):
    rendered = render_result(observation)
    for tag in TAGS:
        assert rendered.count(tag) == (tag in ("<result>", "</result>"))
    assert rendered.startswith("<result> ") and rendered.endswith("</result>")


def test_an_observation_begins_with_a_space():
    assert render_result("Dorim rival Kavel") == "<result> Dorim rival Kavel</result>"


@given(any_text)
def test_a_trace_cannot_leave_its_retrieve_tags(trace):
    rendered = render_retrieved(trace)
    assert rendered.count("<retrieve>") == rendered.count("</retrieve>") == 1
    assert "<|" not in rendered
    assert without_retrieved(f"a{rendered}b") == "ab"


def test_a_retrieved_trace_keeps_its_own_thought_call_and_observation():
    trace = call_step("look", "search", "q", "found")
    assert render_retrieved(trace) == f"<retrieve>{trace}</retrieve>"


def test_a_response_splits_into_its_calls_and_its_answer():
    first = call_step("who", "search", "the friend", "Ann")
    second = call_step("sum", "python", "1 + 1", "2")
    answer = "<think>so</think><answer>\\boxed{2}</answer>"
    assert split_steps(first + second + answer) == [first, second, answer]
    assert split_steps(first + render_retrieved(second) + answer) == [first, answer]


def test_a_retrieve_tag_that_the_policy_wrote_hides_nothing_that_it_wrote():
    trace = render_retrieved(call_step("look", "search", "q", "found"))
    assert without_retrieved(f"<retrieve>mine {trace}rest") == "<retrieve>mine rest"
    assert without_retrieved(f"{trace}mine {trace}rest</retrieve>") == "mine rest</retrieve>"


def test_text_of_a_token_beyond_a_closed_tag_stays_with_its_step():
    first = "<search>q</search>.\n<result>r</result>"
    assert split_steps(first + "<answer>a</answer>") == [first, "<answer>a</answer>"]


def test_a_last_call_without_its_result_is_a_separate_step():
    first = call_step("a", "search", "b", "c")
    assert split_steps(first + "<search>d</search>") == [first, "<search>d</search>"]
    assert split_steps("") == []


@given(any_text)
def test_splitting_any_text_loses_nothing_but_retrieved_traces(text):
    assert "".join(split_steps(text)) == without_retrieved(text)


def test_the_system_prompt_names_every_tag_pair_and_the_box():
    assert all(tag in SYSTEM_PROMPT for tag in TAGS)
    assert "\\boxed{}" in SYSTEM_PROMPT and "if helpful" in SYSTEM_PROMPT


USER_TOOLS = ("loud", "louder")


def test_tags_of_user_tools_follow_the_built_in_ones():
    assert tags(USER_TOOLS) == (*TAGS, "<loud>", "</loud>", "<louder>", "</louder>")
    assert stops(USER_TOOLS) == (*STOPS, "</loud>", "</louder>")
    assert stops() == STOPS
    assert user_tool_names({"loud": 1, "python": 2, "louder": 3}) == USER_TOOLS


def test_a_user_tag_calls_where_it_is_known_and_is_text_where_it_is_not():
    text = "<think>hm</think><loud> hey </loud>"
    assert parse_step(text, USER_TOOLS) == Step("loud", "hey")
    assert parse_step(text) == Step("stop", "")
    assert parse_step(text + "<search>q</search>", USER_TOOLS) == Step("search", "q")
    assert render_result("</loud><louder>", USER_TOOLS) == "<result> < /loud>< louder></result>"
    assert render_result("</loud>") == "<result> </loud></result>"


@given(any_text)
def test_with_user_tags_any_text_parses_and_can_be_made_neutral(text):
    step = parse_step(text, USER_TOOLS)
    assert (step.kind == "stop") == (not any(stop in text for stop in stops(USER_TOOLS)))
    neutral = neutralise(text, USER_TOOLS)
    assert not any(tag in neutral for tag in tags(USER_TOOLS)) and "<|" not in neutral
    assert neutralise(neutral, USER_TOOLS) == neutral


@given(any_text)
def test_splitting_with_user_tags_loses_nothing_but_retrieved_traces(text):
    assert "".join(split_steps(text, USER_TOOLS)) == without_retrieved(text)


def test_a_response_splits_after_calls_of_user_tools_too():
    first = call_step("who", "loud", "hey", "HEY")
    answer = "<think>so</think><answer>\\boxed{HEY}</answer>"
    assert split_steps(first + answer, USER_TOOLS) == [first, answer]
    assert split_steps(first + answer) == [first + answer]


def test_a_system_prompt_names_user_tools_and_stays_as_it_is_without_any():
    assert with_tools("be good", {}) == "be good"
    assert with_tools("be good", {"loud": "Says it louder.", "x": ""}) == (
        "be good\nAnother tool: write its input inside <loud> and </loud>. Says it louder.\n"
        "Another tool: write its input inside <x> and </x>."
    )


def slow_split(text):
    """As one regular expression, which reads to the end of a text at every call."""
    text = without_retrieved(text)
    pattern = re.compile(r"</(?:search|python)>[^<]*<result>.*?</result>\s*", re.DOTALL)
    cuts = [0, *(match.end() for match in pattern.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(cuts) if a < b]


@given(any_text)
def test_splitting_is_that_of_the_regular_expression(text):
    assert split_steps(text) == slow_split(text)


def test_a_text_of_many_calls_without_results_is_searched_once(monkeypatch):
    searches = []

    class Count:
        def search(self, text, start):
            searches.append(start)

    monkeypatch.setattr(protocol, "_RESULT_END", Count())
    text = "</search><result>" * 10_000
    assert split_steps(text) == [text]
    assert searches == [len("</search><result>")]
