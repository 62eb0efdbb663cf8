"""Retrieval from the buffer: the query, the trace, and the history that it becomes part of."""

from __future__ import annotations

from rapo_jax.text.observations import retrieved_ids
from rapo_jax.text.protocol import render_result, render_retrieved, without_retrieved
from tests.environment.stand_ins import TRACE_ROOM, echo


def test_a_long_trace_is_cut_but_keeps_both_its_tags(house):
    trace = "<think> mentor</think>" + "<search> Dorim mentor</search>" * 9
    ids = retrieved_ids(house.tokens, trace, room=TRACE_ROOM)
    text = house.tokens.decode(ids)
    assert len(ids) == TRACE_ROOM
    assert text.startswith("<retrieve><think> mentor") and text.endswith("</retrieve>")


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


def test_a_trace_that_leaves_the_policy_no_room_is_left_out_of_the_tape_and_of_the_history(
    make, search, house
):
    environment = make({}, without_retrieved_history=False)
    ids = retrieved_ids(house.tokens, house.retriever.buffer.step_traces[0].value, room=TRACE_ROOM)
    environment.take_counts()
    assert search(environment, [0], pick=0.0, room=len(ids)) == ([""], [True])
    assert environment._history[0] == ""
    counts = environment.take_counts()
    assert (counts["buffer/queries"], counts["buffer/hits"]) == (1, 0)
    assert not any(x for name, x in counts.items() if "origin" in name or "similarity" in name)
    (text,), _ = search(environment, [0], pick=0.0, room=len(ids) + 1)
    assert text == environment._history[0] != ""
    assert environment.take_counts()["buffer/hits"] == 1


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
