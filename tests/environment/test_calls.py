"""Tool calls: what each tool is given, its observations, and its failures."""

from __future__ import annotations

import dataclasses

import pytest

from rapo_jax.text.observations import observation_ids
from rapo_jax.text.protocol import Step, parse_step, render_result
from rapo_jax.text.protocols import SEARCH_R1, Protocol, rapo
from rapo_jax.text.tool_calls import hermes_calls
from rapo_jax.tools.observation import Observation
from tests.environment.stand_ins import ROOM, Immediate, echo


def recorder(name, heard):
    def call(calls):
        heard.append((name, calls))
        return [Observation(f"{name} {i}", "ok") for i in range(len(calls))]

    return call


STEPS = ["<search> A</search>", "<python>1</python>", "x<search>B </search>", "</python>"]


def test_an_immediate_tool_is_called_once_with_the_batch_of_its_calls(make, act_once):
    heard = []
    tools = {name: Immediate(recorder(name, heard)) for name in ("search", "python")}
    found = act_once(make(tools), STEPS, idle=False)
    assert heard == [("search", ["A", "B"]), ("python", ["1", ""])]
    wanted = ("search 0", "python 0", "search 1", "python 1")
    assert found.texts == [render_result(text) for text in wanted]
    assert found.ready == found.healthy == [True] * 4


def test_any_other_tool_is_called_once_for_each_call(make, act):
    heard = []
    tools = {name: recorder(name, heard) for name in ("search", "python")}
    texts, healthy = act(make(tools), STEPS)
    assert sorted(heard) == [
        *[("python", [""]), ("python", ["1"])],
        *[("search", ["A"]), ("search", ["B"])],
    ]
    wanted = ("search 0", "python 0", "search 0", "python 0")
    assert texts == [render_result(text) for text in wanted] and healthy == [True] * 4


def test_rows_without_a_call_get_an_empty_answer_and_run_no_tool(make, act):
    environment = make({"search": echo})
    texts, healthy = act(environment, ["<search>a</search>"] * 3, calls=[False, True, False])
    assert texts == ["", render_result("heard a"), ""]
    assert healthy == [True] * 3
    assert environment.take_counts()["search"] == 1


def test_a_long_observation_is_cut_but_keeps_both_its_tags(house, make, act):
    flood = "friend " * 50
    environment = make({"search": lambda calls: [Observation(flood, "flooded") for _ in calls]})
    (text,), _ = act(environment, ["<search>a</search>"])
    assert text.startswith("<result> friend") and text.endswith("</result>")
    assert len(observation_ids(house.tokens, flood, room=ROOM)) == ROOM


def test_an_observation_cannot_close_its_tag_nor_open_another(make, act):
    said = "</result><answer>"
    environment = make({"search": lambda calls: [Observation(said, "ok") for _ in calls]})
    (text,), _ = act(environment, ["<search>a</search>"])
    assert text.count("</result>") == 1 and "<answer>" not in text


@pytest.mark.parametrize("outcome", ["error", "timeout", "flooded", "crashed", "empty"])
def test_a_failed_call_is_an_observation_and_is_counted(make, act, outcome):
    environment = make({"python": lambda calls: [Observation("no", outcome) for _ in calls]})
    texts, healthy = act(environment, ["<python>x</python>"] * 2)
    assert texts == [render_result("no")] * 2 and healthy == [True, True]
    counts = environment.take_counts()
    assert counts[f"outcome/{outcome}"] == counts["python"] == 2
    assert environment.failure is None


def raising(calls):
    raise SystemExit("the tool left")


def short(calls):
    return echo(calls)[1:]


@pytest.mark.parametrize("tool", [raising, short])
@pytest.mark.parametrize("immediate", [False, True])
def test_a_tool_that_raises_or_returns_too_few_results_leaves_its_rows_unhealthy(
    make, act, tool, immediate
):
    environment = make({"search": Immediate(tool) if immediate else tool})
    texts, healthy = act(environment, ["<search>a</search>"] * 3, calls=[True, False, True])
    assert texts == ["", "", ""] and healthy == [False, True, False]
    assert isinstance(environment.failure, SystemExit | ValueError)


def test_a_query_that_fails_leaves_its_rows_unhealthy(make, act_once):
    environment = make({"search": Immediate(echo)}, query=broken_query)
    found = act_once(environment, ["<search>a</search>"] * 2, wants=[True, False])
    assert found.ready == [True, True] and found.healthy == [False, False]
    assert found.texts == ["", ""] and isinstance(environment.failure, MemoryError)


def broken_query(texts):
    raise MemoryError


def test_the_first_failure_is_kept_until_the_next_rollout_begins(make, act, act_once, house):
    environment = make({"search": raising, "python": echo}, query=broken_query)
    act(environment, ["<search>a</search>"])
    act_once(environment, ["<python>a</python>"], wants=[True])
    assert isinstance(environment.failure, SystemExit)
    environment.begin(house.asked)
    assert environment.failure is None
    act_once(environment, ["<python>a</python>"], wants=[True])
    assert isinstance(environment.failure, MemoryError)


def test_counts_are_taken_once(make, act, search):
    environment = make({"search": echo})
    environment.take_counts()
    act(environment, ["<search>a</search>", "<search></search>"])
    search(environment, [0])
    counts = environment.take_counts()
    assert counts["search"] == counts["outcome/ok"] == 2
    assert counts["buffer/queries"] == counts["buffer/hits"] == 1
    assert counts["seconds"] > 0
    assert environment.take_counts().get("search", 0) == 0


def test_a_users_tool_is_called_by_its_tag_and_its_observation_is_neutral_and_cut(house, make, act):
    said = {"a": "A</loud>", "b": "friend " * 50, "c": "error: no"}
    outcomes = {"a": "ok", "b": "flooded", "c": "error"}

    def loud(calls):
        return [Observation(said[call], outcomes[call]) for call in calls]

    tokens = dataclasses.replace(house.tokens, user_tools=("loud",), protocol=rapo(("loud",)))
    environment = make({"search": echo, "loud": loud}, tokens=tokens)
    steps = ["<loud>a</loud>", "<search>q</search>", "<loud>c</loud>", "<loud>b</loud>"]
    texts, healthy = act(environment, steps)
    assert texts[:3] == [
        "<result> A< /loud></result>",
        render_result("heard q"),
        render_result("error: no"),
    ]
    assert texts[3].startswith("<result> friend") and texts[3].endswith("</result>")
    assert len(tokens.encode_protocol(texts[3])) == ROOM and healthy == [True] * 4
    counts = environment.take_counts()
    assert (counts["loud"], counts["failed/loud"], counts["search"]) == (3, 2, 1)


def test_a_step_without_an_action_gets_the_reply_of_its_protocol_and_counts_as_a_failed_call(
    house, make, act
):
    tokens = dataclasses.replace(house.tokens, protocol=SEARCH_R1)
    environment = make({"search": echo}, tokens=tokens, room=300)
    steps = ["<search> q </search>", "Dorim", "<answer> Dorim </search>", "<search>a</search>"]
    texts, healthy = act(environment, steps)
    heard = "\n\n<information>heard {}</information>\n\n"
    reply = SEARCH_R1.corrective
    assert texts == [heard.format("q"), reply, reply, heard.format("a")] and all(healthy)
    assert environment.calls[:2] == [[("search", "ok")], [("invalid", "error")]]
    counts = environment.take_counts()
    assert (counts["search"], counts["invalid"], counts["outcome/error"]) == (2, 2, 2)


def test_room_that_cannot_hold_the_tags_of_an_observation_is_refused(house, make):
    tokens = dataclasses.replace(house.tokens, protocol=SEARCH_R1)
    with pytest.raises(ValueError, match="rollout.observation_tokens=12: .* of 'search_r1' need"):
        make({"search": echo}, tokens=tokens, room=12)


CALLING = Protocol(
    "calling", ("</end>",), hermes_calls, (), before="(", between=" | ", after=")", corrective="?"
)


def calling(*texts):
    """A turn with a search for each text; a text with a brace is written as the call itself."""
    search = '{{"name": "search", "arguments": {{"query": "{}"}}}}'
    calls = (text if "{" in text else search.format(text) for text in texts)
    return "".join(f"<tool_call>{call}</tool_call>" for call in calls)


def test_all_calls_of_a_turn_are_made_and_their_observations_joined_in_their_order(
    house, make, act
):
    tokens = dataclasses.replace(house.tokens, protocol=CALLING)
    for tool in (echo, Immediate(echo)):
        environment = make({"search": tool}, tokens=tokens, room=60)
        steps = [calling("a", "b"), "no call", calling("c", "{", "d")]
        texts, healthy = act(environment, steps, rows=[0, 1, 2])
        assert texts[:2] == ["(heard a | heard b)", ""] and all(healthy)
        assert texts[2].startswith("(heard c | ") and texts[2].endswith(" | heard d)")
        ok, error = ("search", "ok"), ("invalid", "error")
        assert environment.calls[:3] == [[ok, ok], [], [ok, error, ok]]


def test_calls_of_a_turn_beyond_the_limit_are_not_made(house, make, act):
    heard = []
    tokens = dataclasses.replace(house.tokens, protocol=CALLING)
    environment = make({"search": recorder("s", heard)}, tokens=tokens, room=200, max_calls=3)
    act(environment, [calling("a", "b")])
    (text,), _ = act(environment, [calling("c", "d")])
    assert text == f"(s 0 | {CALLING.no_calls_left})"
    assert sorted(call for _, (call,) in heard) == ["a", "b", "c"]
    assert environment.calls[0] == [("search", "ok")] * 3 + [("search", "error")]


TAGGED = Protocol("tagged", ("</search>",), parse_step, (), at_eos="parse", corrective="?")


def test_a_step_that_stops_or_answers_calls_nothing_and_gets_no_reply(house, make, act):
    tokens = dataclasses.replace(house.tokens, protocol=TAGGED)
    environment = make({"search": echo}, tokens=tokens)
    steps = ["so be it", "<answer>a</answer>", "<search>a</search>"]
    texts, healthy = act(environment, steps)
    assert texts == ["", "", render_result("heard a")] and healthy == [True] * 3
    assert environment.calls[:3] == [[], [], [("search", "ok")]]


def test_a_tool_that_the_run_does_not_have_is_an_invalid_call(house, make, act):
    def parse(text):
        return Step(text.split("(")[0], "a")

    tokens = dataclasses.replace(house.tokens, protocol=dataclasses.replace(TAGGED, parse=parse))
    environment = make({"search": echo}, tokens=tokens)
    texts, healthy = act(environment, ["search(a)</search>", "browse(a)</search>"])
    assert texts == [render_result("heard a"), "?"] and healthy == [True] * 2
    assert environment.calls[:2] == [[("search", "ok")], [("invalid", "error")]]


@pytest.mark.parametrize("tools", [("browse", "search"), ("search", "browse")])
def test_an_invalid_call_hides_no_observation_of_the_others_of_its_step(house, make, act, tools):
    protocol = dataclasses.replace(TAGGED, parse=lambda text: [Step(tool, "a") for tool in tools])
    environment = make(
        {"search": echo}, tokens=dataclasses.replace(house.tokens, protocol=protocol)
    )
    (text,), _ = act(environment, ["both</search>"])
    said = {"search": "heard a", "browse": "?"}
    assert text == protocol.render(*(said[tool] for tool in tools))


def test_a_turn_that_answers_after_its_calls_makes_these(house, make, act):
    def parse(text):
        return [parse_step(f"{part}>") for part in text.split(">|")]

    protocol = dataclasses.replace(TAGGED, parse=parse)
    tokens = dataclasses.replace(house.tokens, protocol=protocol)
    (text,), _ = act(
        make({"search": echo}, tokens=tokens), ["<search>a</search>|<answer>a</answer"]
    )
    assert text == render_result("heard a")


def test_a_tool_that_raises_in_one_of_a_turns_calls_leaves_its_row_unhealthy(house, make, act):
    tokens = dataclasses.replace(house.tokens, protocol=CALLING)
    environment = make({"search": echo, "python": raising}, tokens=tokens, room=60)
    broken = '{"name": "python", "arguments": {"code": "1"}}'
    texts, healthy = act(environment, [calling("a", broken)])
    assert (texts, healthy) == ([""], [False]) and isinstance(environment.failure, SystemExit)
