"""Calls that take a while: who waits for them, and who does not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rapo_jax.text.protocol import render_result
from rapo_jax.tools.busy import BusyTime
from tests.environment.stand_ins import Immediate, echo


def test_a_slow_call_delays_its_row_alone(make, act_once, gate):
    environment, steps = make({"search": gate}), ["<search>s</search>", "<search>f</search>"]
    found = act_once(environment, steps)  # all are idle: it waits for one of them
    assert found.ready == [False, True] and found.healthy == [True, True]
    assert found.texts == ["", render_result("heard f")]
    waits = {"calls": [False, False], "waits": [True, False]}
    found = act_once(environment, steps, idle=False, **waits)
    assert found.ready == [False, False] and found.texts == ["", ""]

    again = {"calls": [False, True], "waits": [True, False]}  # the fast row is a step further
    found = act_once(environment, ["", "<search>n</search>"], **again)
    assert (found.ready, found.texts) == ([False, True], ["", render_result("heard n")])
    assert environment.take_counts()["search"] == 2

    gate.opened.set()
    found = act_once(environment, steps, **waits)
    assert (found.ready, found.texts) == ([True, False], [render_result("heard s"), ""])
    assert environment._history[0] == "<search>s</search>" + render_result("heard s")
    assert environment.calls[:2] == [[("search", "ok")], [("search", "ok")] * 2]


def test_where_all_slots_are_idle_it_waits_for_one_and_counts_the_time(make, act_once, gate):
    environment, opener = make({"search": gate}), threading.Timer(0.2, gate.opened.set)
    opener.start()
    found = act_once(environment, ["<search>s</search>"])
    assert found.ready == [True]
    assert environment.take_counts()["waited"] > 0.1


def test_queries_are_made_for_rows_that_want_them_once_they_are_ready(make, act_once, gate, house):
    queries = []

    def query(texts):
        queries.extend(texts)
        return house.encode(texts)

    environment = make({"search": gate, "python": Immediate(echo)}, query=query)
    steps = ["<search>s</search>", "<python>a</python>", "<python>b</python>"]
    found = act_once(environment, steps, rows=[4, 5, 6], wants=[True, True, False], idle=False)
    assert found.ready == [False, True, True]
    gate.opened.set()
    waits = {"calls": [False] * 3, "waits": [True, False, False]}
    later = act_once(environment, steps, rows=[4, 5, 6], wants=[True] * 3, **waits)
    assert later.ready == [True, False, False]

    histories = [
        step + render_result(f"heard {call}") for step, call in zip(steps, ("s", "a"), strict=False)
    ]
    questions = [house.asked[row].question for row in (4, 5)]
    slow, fast = house.retriever.key_texts(questions, histories)
    assert queries == [fast, slow]
    key_BE = house.encode([slow, fast])
    np.testing.assert_array_equal(found.query_UE[1], key_BE[1])
    np.testing.assert_array_equal(later.query_UE[0], key_BE[0])
    assert not found.query_UE[[0, 2]].any() and not later.query_UE[1:].any()


def leaving(calls):
    raise SystemExit("the tool left")


def test_a_tool_that_dies_makes_all_rows_ready_and_unhealthy_that_ask(make, act_once, gate):
    environment = make({"search": gate, "python": leaving})
    steps = ["<search>s</search>", "<search>a</search>", "<python>b</python>"]
    found = act_once(environment, steps, calls=[True, False, False], idle=False)
    assert found.ready == [False] * 3
    found = act_once(environment, steps, calls=[False, False, True], waits=[True, False, False])
    assert found.ready == [True, False, True] and found.healthy == [False, True, False]
    assert found.texts == [""] * 3
    assert isinstance(environment.failure, SystemExit)


def test_a_new_rollout_forgets_the_calls_of_the_former_one(make, act_once, gate, house):
    environment, steps = make({"search": gate}), ["<search>s</search>"]
    assert act_once(environment, steps, idle=False).ready == [False]
    environment.begin(house.asked)
    steps = ["<search>f</search>"]
    found = act_once(environment, steps)
    assert (found.ready, found.texts) == ([True], [render_result("heard f")])
    gate.opened.set()
    found = act_once(environment, ["<search>a</search>"])
    assert (found.ready, found.texts) == ([True], [render_result("heard a")])
    assert "heard s<" not in environment._history[0] and environment.take_counts()["search"] == 2


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


def test_seconds_in_which_several_shards_wait_count_once(make, act_once, gate):
    environment, opener = make({"search": gate}), threading.Timer(0.4, gate.opened.set)
    started = time.perf_counter()
    with ThreadPoolExecutor() as shards:
        opener.start()
        step = ["<search>s</search>"]
        asked = [shards.submit(act_once, environment, step, rows=[row]) for row in range(4)]
    assert all(each.result().ready == [True] for each in asked)
    counts, wall = environment.take_counts(), time.perf_counter() - started
    assert 0.2 < counts["waited"] <= counts["seconds"] <= wall
    assert environment.take_counts()["seconds"] == 0


def test_time_is_waited_only_while_no_busy_thread_works():
    measured, waits, works = BusyTime(), threading.Event(), threading.Event()

    def waiter():
        with measured.busy(), measured.waiting():
            waits.set()
            works.wait()

    with ThreadPoolExecutor() as threads:
        threads.submit(waiter)
        waits.wait()
        measured.take()
        with measured.busy():
            time.sleep(0.1)
            _, waited_beside_work = measured.take()
        time.sleep(0.1)
        _, waited = measured.take()
        works.set()
    assert waited_beside_work < 0.05 < waited
