"""The host callbacks: tools, buffer and history of each row, and their failures."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from rapo_jax.environment import Environment, observation_ids, retrieved_ids
from rapo_jax.text.protocol import render_result, render_retrieved, without_retrieved
from rapo_jax.tools.observation import Observation

ROOM, TRACE_ROOM, STEP = 12, 20, 16


def echo(calls):
    return [Observation(f"heard {call}" if call else "nothing", "ok") for call in calls]


@pytest.fixture
def make(house):
    """An environment with these tools, and room as the small rollout has it."""

    def make(tools, *, without_retrieved_history=True, query=None, exclude=False, tokens=None):
        found = Environment(
            tokens or house.tokens, tools, observation_tokens=ROOM, retrieved_tokens=TRACE_ROOM
        )
        found.use_buffer(
            house.retriever,
            query or house.encode,
            exclude_same_question=exclude,
            without_retrieved_history=without_retrieved_history,
        )
        found.begin(house.asked)
        return found

    return make


@pytest.fixture
def act(house):
    """Steps of rows as the rollout writes them; returns the observations' texts and health."""

    def ask(environment, steps, rows=None, calls=None):
        token_BX = np.zeros((len(steps), STEP), np.int32)
        length_B = np.zeros(len(steps), np.int32)
        for b, text in enumerate(steps):
            ids = house.tokens.encode_protocol(text)
            token_BX[b, : len(ids)], length_B[b] = ids, len(ids)
        row_B = np.arange(len(steps), dtype=np.int32) if rows is None else np.array(rows)
        calls_B = np.ones(len(steps), bool) if calls is None else np.array(calls)
        token_BX, length_B, healthy_B = environment.act(row_B, token_BX, length_B, calls_B)
        assert token_BX.dtype == length_B.dtype == np.int32 and healthy_B.dtype == bool
        return texts_of(house, token_BX, length_B), healthy_B.tolist()

    return ask


def texts_of(house, token_BX, length_B):
    pairs = zip(token_BX, length_B, strict=True)
    return [house.tokens.decode(row[:length]) for row, length in pairs]


@pytest.fixture
def search(house):
    """Traces for rows; returns their texts and health."""

    def ask(environment, rows, *, wants=None, pick=-1.0, room=1000):
        row_B, wants_B = np.array(rows), np.ones(len(rows), bool)
        if wants is not None:
            wants_B = np.array(wants)
        width = house.retriever.buffer.key_ME.shape[1]
        blank = np.zeros((len(rows), width), np.float32)
        key_BE = environment.query(row_B, wants_B, query=blank)
        pick_B, room_B = np.full(len(rows), pick), np.full(len(rows), room)
        token_BX, length_B, healthy_B = environment.search(row_B, wants_B, key_BE, pick_B, room_B)
        return texts_of(house, token_BX, length_B), healthy_B.tolist()

    return ask


def test_each_tool_is_called_once_with_the_batch_of_its_calls(make, act):
    heard = []

    def tool(name):
        def call(calls):
            heard.append((name, calls))
            return [Observation(f"{name} {i}", "ok") for i in range(len(calls))]

        return call

    environment = make({"search": tool("search"), "python": tool("python")})
    steps = ["<search> A</search>", "<python>1</python>", "x<search>B </search>", "</python>"]
    texts, healthy = act(environment, steps)
    assert heard == [("search", ["A", "B"]), ("python", ["1", ""])]
    wanted = ("search 0", "python 0", "search 1", "python 1")
    assert texts == [render_result(text) for text in wanted]
    assert healthy == [True] * 4


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


def test_a_long_trace_is_cut_but_keeps_both_its_tags(house):
    trace = "<think> mentor</think>" + "<search> Dorim mentor</search>" * 9
    ids = retrieved_ids(house.tokens, trace, room=TRACE_ROOM)
    text = house.tokens.decode(ids)
    assert len(ids) == TRACE_ROOM
    assert text.startswith("<retrieve><think> mentor") and text.endswith("</retrieve>")


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
    return [Observation("one", "ok")]


@pytest.mark.parametrize("tool", [raising, short])
def test_a_tool_that_raises_or_returns_too_few_results_leaves_its_rows_unhealthy(make, act, tool):
    environment = make({"search": tool})
    texts, healthy = act(environment, ["<search>a</search>"] * 3, calls=[True, False, True])
    assert texts == ["", "", ""] and healthy == [False, True, False]
    assert isinstance(environment.failure, SystemExit | ValueError)


def test_the_first_failure_is_kept_until_the_next_rollout_begins(make, act, search, house):
    def broken_query(texts):
        raise MemoryError

    environment = make({"search": raising}, query=broken_query)
    act(environment, ["<search>a</search>"])
    search(environment, [0])
    assert isinstance(environment.failure, SystemExit)
    environment.begin(house.asked)
    assert environment.failure is None
    search(environment, [0])
    assert isinstance(environment.failure, MemoryError)


def test_the_nearest_trace_to_the_rows_state_comes_back_rendered(make, act, search, house):
    environment = make({"search": echo})
    act(environment, ["<think> mentor</think><search>a</search>"], rows=[3])
    texts, healthy = search(environment, [3, 5])
    histories = ["<think> mentor</think><search>a</search>" + render_result("heard a"), ""]
    questions = [house.asked[row].question for row in (3, 5)]
    key_BE = house.encode(house.retriever.key_texts(questions, histories))
    hits = house.retriever.nearest(key_BE)
    assert texts == [render_retrieved(hit.value) for hit in hits]
    assert healthy == [True, True]


def test_a_pick_asks_for_that_trace_and_a_row_that_wants_none_gets_none(make, search, house):
    environment = make({})
    step_traces = house.retriever.buffer.step_traces
    texts, _ = search(environment, [0, 1], wants=[True, False], pick=(7 + 0.5) / len(step_traces))
    assert texts == [render_retrieved(step_traces[7].value), ""]


def test_a_trace_without_room_is_left_out_of_the_tape_and_of_the_history(make, search, house):
    environment = make({}, without_retrieved_history=False)
    ids = retrieved_ids(house.tokens, house.retriever.buffer.step_traces[0].value, room=TRACE_ROOM)
    assert search(environment, [0], pick=0.0, room=len(ids) - 1) == ([""], [True])
    assert environment._history[0] == ""
    (text,), _ = search(environment, [0], pick=0.0, room=len(ids))
    assert text == environment._history[0] != ""


def test_keys_are_made_of_the_whole_history_or_of_the_rows_part_of_it(make, act, search, house):
    queries = []

    def query(texts):
        queries.extend(texts)
        return house.encode(texts)

    step = "<think> rival</think><search>b</search>"
    for cut in (True, False):
        environment = make({"search": echo}, without_retrieved_history=cut, query=query)
        (trace,), _ = search(environment, [2])
        act(environment, [step], rows=[2])
        search(environment, [2])
        history = trace + step + render_result("heard b")
        read = without_retrieved(history) if cut else history
        (wanted,) = house.retriever.key_texts([house.asked[2].question], [read])
        assert queries[-1] == wanted
        assert ("<retrieve>" in queries[-1]) is not cut


def test_traces_of_the_same_question_can_be_excluded(make, search, house):
    origin = house.retriever.buffer.step_traces[0]
    question = next(q for q in house.expert_questions if q.id == origin.question_id)
    for exclude, same in ((False, 1), (True, 0)):
        environment = make({}, exclude=exclude)
        environment.begin([question])
        search(environment, [0])
        assert environment.take_counts()["buffer/same_question"] == same


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


def test_devices_may_call_at_the_same_time(make, act, search, house):
    environment, failures = make({"search": echo}), []

    def device(rows):
        for turn in range(20):
            steps = [f"<search>{row} {turn}</search>" for row in rows]
            texts, _ = act(environment, steps, rows=rows)
            if texts != [render_result(f"heard {row} {turn}") for row in rows]:
                failures.append(texts)
            search(environment, rows)

    threads = [threading.Thread(target=device, args=([2 * i, 2 * i + 1],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and environment.failure is None
    counts = environment.take_counts()
    assert counts["search"] == 4 * 2 * 20 == counts["buffer/queries"]
    for row in range(8):
        heard = [f"heard {row} {turn}<" for turn in range(20)]
        places = [environment._history[row].index(text) for text in heard]
        assert places == sorted(places)


def test_a_users_tool_is_called_by_its_tag_and_its_observation_is_neutral_and_cut(house, make, act):
    said = {"a": "A</loud>", "b": "friend " * 50, "c": "error: no"}
    outcomes = {"a": "ok", "b": "flooded", "c": "error"}

    def loud(calls):
        return [Observation(said[call], outcomes[call]) for call in calls]

    tokens = dataclasses.replace(house.tokens, user_tools=("loud",))
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
