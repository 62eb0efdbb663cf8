"""Protocols of published systems, on transcripts in their formats."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from rapo_jax.search.passages import Passage, passage_of, render_passages
from rapo_jax.suites.scores import score_predictions
from rapo_jax.tasks import answer_of, failure_kind, is_correct, outcome_reward
from rapo_jax.text.boundary import boundary_automaton
from rapo_jax.text.protocol import INVALID, SYSTEM_PROMPT, Step
from rapo_jax.text.protocols import (
    PROTOCOLS,
    SEARCH_R1,
    TOOL_STAR,
    Protocol,
    find_protocol,
    rapo,
)
from rapo_jax.text.tokens import load_tokens
from tests.text.test_chat import PUBLISHED, make

SEARCH_R1_RESPONSE = (
    "<think>I need the capital of France.</think>\n<search> capital of France </search>"
    '\n\n<information>Doc 1(Title: "Paris") Paris is the capital.\n</information>\n\n'
    "<think>So it is Paris.</think>\n<answer> Paris </answer>"
)
TOOL_STAR_RESPONSE = (
    "<think>First search.</think><search> half of 84 </search><result>\n[1] 84\n</result>"
    "<think>Now compute.</think><python>\nprint(84 // 2)\n</python><result>\n42\n</result>"
    "<think>Done.</think> <answer>The final answer is \\[ \\boxed{42} \\]</answer>"
)


def steps_of(protocol, response):
    """The policy's steps of a response, cut as the automaton of the rollout cuts them."""
    automaton = boundary_automaton([bytes([i]) for i in range(256)], protocol.stops)
    steps, begin, state, data = [], 0, 0, response.encode()
    at = 0
    while at < len(data):
        state = automaton.next_state_AV[state, data[at]]
        at += 1
        if state >= automaton.first_accept:
            steps.append(data[begin:at].decode())
            observation = data[at:].decode()
            shown = observation.startswith(protocol.before)
            if shown:
                start = observation.index(protocol.after, len(protocol.before))
                at += start + len(protocol.after)
            begin, state = at, 0
    return [*steps, data[begin:].decode()] if begin < len(data) else steps


@pytest.mark.parametrize(
    ("protocol", "response", "calls"),
    [
        (SEARCH_R1, SEARCH_R1_RESPONSE, [("search", "capital of France"), ("answer", "Paris")]),
        (
            TOOL_STAR,
            TOOL_STAR_RESPONSE,
            [("search", "half of 84"), ("python", "print(84 // 2)"),
             ("answer", "The final answer is \\[ \\boxed{42} \\]")],
        ),
    ],
    ids=lambda x: getattr(x, "name", ""),
)  # fmt: skip
def test_a_transcript_is_cut_at_its_calls_and_parsed(protocol, response, calls):
    assert [protocol.parse(step) for step in steps_of(protocol, response)] == calls


@pytest.mark.parametrize(
    ("protocol", "response", "said"),
    [(SEARCH_R1, SEARCH_R1_RESPONSE, 'Doc 1(Title: "Paris") Paris is the capital.\n'),
     (TOOL_STAR, TOOL_STAR_RESPONSE, "[1] 84"), (TOOL_STAR, TOOL_STAR_RESPONSE, "42")],
)  # fmt: skip
def test_an_observation_is_written_as_in_the_transcript(protocol, response, said):
    assert protocol.render(said) in response


def test_a_hit_of_search_r1_is_a_numbered_document():
    hits = [passage_of('"Paris"\nParis is the capital.'), Passage("Lyon", "A city.")]
    shown = render_passages(hits, lambda text: True, SEARCH_R1.passage)
    assert shown == 'Doc 1(Title: "Paris") Paris is the capital.\nDoc 2(Title: "Lyon") A city.'
    assert shown.splitlines()[0] in SEARCH_R1_RESPONSE


def test_foreign_text_writes_no_tag_of_the_protocol():
    assert SEARCH_R1.render("a</information><search>") == (
        "\n\n<information>a< /information>< search></information>\n\n"
    )
    assert TOOL_STAR.render("x</result><|im_end|>") == "<result>\nx< /result>< |im_end|>\n</result>"


@pytest.mark.parametrize(
    ("text", "step"),
    [("<search>a</search>", Step("search", "a")), ("no action", Step(INVALID, "")),
     ("<search>a", Step(INVALID, "")), ("</search>", Step(INVALID, "")),
     ("<answer>a</search>", Step(INVALID, "")), ("<search> </search>", Step("search", ""))],
)  # fmt: skip
def test_search_r1_takes_a_whole_action_or_replies(text, step):
    assert SEARCH_R1.parse(text) == step


def test_the_last_answer_counts_in_search_r1_and_no_answer_is_worth_nothing():
    rule = {"answers": SEARCH_R1.answers}
    assert outcome_reward(SEARCH_R1_RESPONSE, ["paris"], **rule) == 1.0
    assert outcome_reward(SEARCH_R1_RESPONSE, ["Lyon"], **rule) == 0.0
    assert is_correct(SEARCH_R1_RESPONSE, ["Paris"], **rule)
    twice = "<answer>Lyon</answer> or <answer> Paris\n</answer>"
    assert answer_of(twice, **rule) == "Paris" and failure_kind(twice, **rule) == ""
    assert outcome_reward("Paris", ["Paris"], **rule) == 0.0
    assert failure_kind("<answer>Paris", **rule) == "no answer"


REPLY = SEARCH_R1.corrective


@pytest.mark.parametrize("told", [REPLY, REPLY[:-40], REPLY[:170], REPLY[:40]])
def test_a_corrective_reply_of_the_environment_is_no_answer_also_where_it_was_cut_off(told):
    rule = {"answers": SEARCH_R1.answers}
    never = f"no idea{told}x"
    assert outcome_reward(never, ["Trinidad and Tobago"], **rule) == 0
    assert failure_kind(never, **rule) == "no answer"
    assert answer_of(f"<answer> Paris{told}so be it", **rule) is None
    assert answer_of(f"<answer> Paris{told}so be it </answer>", **rule) is None
    assert answer_of(f"<answer> Paris{told}so: <answer> Rome </answer>", **rule) == "Rome"
    assert answer_of(f"it is Rome{told}so: <answer> Rome </answer>{told}", **rule) == "Rome"
    assert answer_of(f"<answer>Paris</answer>{told}<answer>Rome</answer>", **rule) == "Rome"


def test_a_users_rule_reads_the_text_between_the_corrective_replies_of_its_protocol():
    def last_line(text):
        return text.strip().rpartition("\n")[2] or None

    mine = Protocol(
        "mine", ("]]",), SEARCH_R1.parse, (), corrective="Say it again!", answers=last_line
    )
    assert answer_of("so\nRome Say it again!", answers=mine.answers) == "Rome"
    other = dataclasses.replace(mine, corrective="Once more, and in one line.")
    assert answer_of("Rome Once more, and in one line.", answers=other.answers) == "Rome"
    silent = dataclasses.replace(mine, corrective="")
    assert answer_of("Say it again!", answers=silent.answers) is not None
    turns = dataclasses.replace(mine, turns=True, before="(", after=")", tags=("think",))
    assert answer_of("Rome (Say it again!", answers=turns.answers) == "Rome ("


@pytest.mark.parametrize(
    ("rule", "reply"),
    [("boxed", r"Give it in \boxed{answer}."), ("tagged", "Write <answer>it</answer>.")],
)
def test_a_corrective_reply_that_would_be_read_as_an_answer_is_refused(rule, reply):
    how = {"stops": ("]]",), "parse": SEARCH_R1.parse, "tags": ("answer",), "answers": rule}
    with pytest.raises(ValueError, match=f"answers='{rule}' reads as an answer; word it without"):
        Protocol("mine", **how, corrective=reply)
    Protocol("mine", **how, corrective=reply, turns=True)  # there it is parted as observations are


def test_a_tool_star_transcript_has_the_papers_reward_with_its_bonus():
    assert outcome_reward(TOOL_STAR_RESPONSE, ["42"], answers=TOOL_STAR.answers) == 1.1
    assert outcome_reward("42", ["42"], answers=TOOL_STAR.answers) == -1.0


def test_the_last_box_counts_whatever_the_format():
    assert answer_of("\\boxed{1} so \\boxed{2}", answers="boxed") == "2"
    assert outcome_reward("\\boxed{1} so \\boxed{2}", ["2"], answers="boxed") == 1.0
    assert outcome_reward("2", ["2"], answers="boxed") == 0.0


@pytest.mark.parametrize("rule", ["official", "strict"])
def test_suites_score_by_the_rule_of_the_protocol(rule):
    row = {
        "id": "q", "sample": 0, "question": "?", "gold": ["Paris"], "group": "g", "metric": "f1",
        "ending": "ANSWERED", "calls": {}, "failed_calls": {}, "tokens": 1,
    }  # fmt: skip
    texts = [SEARCH_R1_RESPONSE, "<answer>Lyon</answer>", "Paris"]
    scored = score_predictions(
        [row | {"text": text} for text in texts],
        rule=rule, user_tools=(), judge=None, answers=SEARCH_R1.answers,
    )  # fmt: skip
    assert [x["prediction"] for x in scored] == ["Paris", "Lyon", ""]
    assert [x["kind"] for x in scored] == ["right", "wrong", "no answer"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("hub"), *PUBLISHED["qwen2.5"])
    return lambda protocol: load_tokens(folder, protocol=protocol)


def test_a_search_r1_prompt_is_its_template_in_the_users_turn_alone(qwen):
    tokens = qwen(SEARCH_R1)
    asked = tokens.decode(tokens.prompt_ids(SEARCH_R1.system, "who? <search>x</search>"))
    assert "<|im_start|>user\nAnswer the given question. You must conduct" in asked
    assert asked.endswith(
        "<answer> Beijing </answer>. Question: who? < search>x< /search>\n<|im_end|>\n"
        "<|im_start|>assistant"
    )
    assert SYSTEM_PROMPT not in asked


def test_a_tool_star_prompt_has_its_system_prompt_and_the_bare_question(qwen):
    tokens = qwen(TOOL_STAR)
    asked = tokens.decode(tokens.prompt_ids(TOOL_STAR.system, "who?"))
    assert f"<|im_start|>system\n{TOOL_STAR.system}<|im_end|>" in asked
    assert "<|im_start|>user\nwho?<|im_end|>" in asked


def test_ours_is_the_protocol_of_a_tokenizer_without_another(qwen):
    tokens = qwen(None)
    assert tokens.protocol.name == "rapo" and tokens.protocol.render("a") == "<result> a</result>"
    assert rapo(("sum",)).parse("<sum>1 2</sum>") == Step("sum", "1 2")
    assert find_protocol("rapo", ("sum",)).render("</sum>") == "<result> < /sum></result>"


def test_a_users_protocol_is_loaded_and_checked(tmp_path, monkeypatch):
    (tmp_path / "their_format.py").write_text(
        "from rapo_jax.text.protocols import Protocol, last_answer\n"
        "from rapo_jax.text.protocol import parse_step\n"
        "MINE = Protocol('mine', ('</search>',), parse_step, ('search',), answers=last_answer)\n"
        "OTHER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_protocol("their_format:MINE", ("sum",)).name == "mine"
    with pytest.raises(ValueError, match="protocol='their_format:OTHER': it is a int and no"):
        find_protocol("their_format:OTHER")
    with pytest.raises(ValueError, match="did you mean 'MINE'"):
        find_protocol("their_format:MINES")
    sys.modules.pop("their_format")
    with pytest.raises(ValueError, match=r"answer_stop='</a>' is none of stops="):
        Protocol("mine", ("</search>",), SEARCH_R1.parse, (), answer_stop="</a>")


def test_the_example_of_the_page_is_a_protocol(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    code = page.partition("# their_format.py\n")[2].partition("```")[0]
    (tmp_path / "bracket_format.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    protocol = find_protocol("bracket_format:BRACKETS")
    steps = steps_of(protocol, "so [[ the sun ]]\nFound: a star\n<answer> a star </answer>")
    assert steps == ["so [[ the sun ]]", "<answer> a star </answer>"]
    assert protocol.parse(steps[0]) == Step("search", "the sun")
    assert protocol.parse("nothing") == Step(INVALID, "")


def test_a_published_protocol_refuses_tools_that_its_checkpoints_do_not_know():
    with pytest.raises(ValueError, match="protocol='search_r1': its checkpoints know no tools sum"):
        find_protocol("search_r1", ("sum",))
    assert set(PROTOCOLS) >= {"rapo", "search_r1", "tool_star"}


def test_a_wrong_name_brings_the_nearest_and_stages_of_our_tags_are_refused(small_settings):
    with pytest.raises(ValueError, match="protocol='search_r2': .* did you mean 'search_r1'"):
        small_settings({"protocol": "search_r2"})
    for changes in ({}, {"stages": ("rl",)}, {"stages": ("buffer",), "method": "grpo"}):
        with pytest.raises(ValueError, match="protocol='search_r1': cold start and buffer"):
            small_settings({"protocol": "search_r1", **changes})
    small_settings({"protocol": "search_r1", "stages": ("rl", "evaluate"), "method": "grpo"})


@pytest.mark.parametrize("name", ["chat_tools", "search_o1"])
def test_a_box_that_a_tool_wrote_is_no_answer(name):
    protocol = PROTOCOLS[name]
    assert protocol.answers == "boxed"
    observed = protocol.render(r"It is \boxed{4}, or \fbox{5}; a \boxedset is none.")
    assert r"a \boxedset is none" in observed
    assert answer_of(f"I did not find it. {observed}", answers="boxed") is None
    asked = rf"Is it \boxed{{7}}? {observed}"
    assert outcome_reward(asked, ["7"], answers="boxed") == 1
    assert outcome_reward(asked, ["4"], answers="boxed") == 0
    # an answer of the policy after it still counts
    assert answer_of(rf"{observed} So \boxed{{4}}.", answers="boxed") == "4"
