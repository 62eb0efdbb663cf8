"""The search tool over HTTP: cache, limits, and services that are slow, busy or not there."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax.config import SearchSettings, ToolsSettings
from rapo_jax.tools import make_tools
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.search_client import RateLimit
from tests.tools.services import NO_KEY, SHAPES, query_of, retrieval, search, web


def test_a_slow_service_is_a_time_out_for_its_query_alone(serve):
    def answer(handler, body):
        if query_of(handler, body) == "slow":
            time.sleep(2)
        return web("serper")(handler, body)

    found = search("serper", serve(answer), deadline_s=0.5)(["slow", "fast"])
    assert found[0] == Observation("error: search timed out", "timeout")
    assert found[1].outcome == "ok"


def test_a_cache_in_a_folder_that_cannot_be_made_is_refused_by_its_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^tools.search.cache='.*/file/search.sqlite': cannot be"):
        search("serper", "http://127.0.0.1:9", cache=str(tmp_path / "file" / "search.sqlite"))


def test_a_busy_service_is_asked_again(serve):
    statuses = [429, 503]

    def answer(handler, body):
        return (statuses.pop(0), "busy") if statuses else web("bing")(handler, body)

    assert search("bing", serve(answer))(["q"])[0].outcome == "ok"


def test_hits_are_cached_on_disk_and_failures_are_not(serve, tmp_path):
    asked = []

    def answer(handler, body):
        asked.append(query_of(handler, body))
        if asked == ["q"]:
            return 404, "not yet"
        pages = [] if asked[-1] == "nothing" else [("t", "s")]
        return 200, SHAPES["serper"](pages)

    url, cache = serve(answer), str(tmp_path / "cache.sqlite")
    first = search("serper", url, cache=cache)
    assert first(["q"])[0].outcome == "error"
    found = first(["q", "nothing"])
    first.close()
    second = search("serper", url, cache=cache)
    assert second(["q", "nothing"]) == found
    assert sorted(asked) == ["nothing", "nothing", "q", "q"]
    search("serper", url, cache=cache, passages=1)(["q"])  # fewer passages are another answer
    assert asked[-1] == "q" and len(asked) == 5


@pytest.mark.parametrize(
    "bad", ["NULL", "3", "'x'", "'null'", "'[[1]]'", "'[[1, 2]]'", "'[3]'", "x'00ff'",
            "'[[\"a\", \"b'", "CAST(x'ff' AS TEXT)"],
)  # fmt: skip
def test_a_damaged_row_of_the_cache_fails_no_batch_and_is_replaced(serve, tmp_path, bad):
    asked = []
    url = serve(lambda h, body: asked.extend(body["queries"]) or retrieval(h, body))
    tool = search("retrieval", url, cache=str(tmp_path / "cache"))
    found = tool(["a", "b"])
    with sqlite3.connect(tmp_path / "cache") as db:
        db.execute(f"UPDATE texts SET text = {bad} WHERE text LIKE '%\"a\"%'")
    assert tool(["a", "b"]) == found and tool(["a", "b"]) == found
    assert asked == ["a", "b", "a"]


def test_a_cache_that_cannot_be_written_loses_no_answer(serve, tmp_path):
    tool = search("retrieval", serve(retrieval), cache=str(tmp_path / "cache"))
    with sqlite3.connect(tmp_path / "cache") as db:
        db.execute("DROP TABLE texts")
    assert [found.outcome for found in tool(["a", "b"])] == ["ok", "ok"]


def test_user_info_and_queries_of_an_address_are_in_no_message():
    for url in ("ftp://me:secret@host/x?key=secret", "http://me:secret@127.0.0.1:9/?key=secret"):
        with pytest.raises(ValueError, match=r"\*\*\*") as refused:
            search("retrieval", url).check()
        assert "secret" not in str(refused.value)


def test_an_observation_ends_at_a_passage_border(serve):
    room = len("[1] q: text 0")
    tool = search("retrieval", serve(retrieval), fits=lambda text: len(text) <= room)
    assert tool(["q"])[0].text == "[1] q: text 0"


def test_a_long_query_is_cut_and_any_text_is_a_query(serve):
    seen = []
    url = serve(lambda handler, body: seen.extend(body["queries"]) or retrieval(handler, body))
    tool = search("retrieval", url)
    assert [found.outcome for found in tool(["x" * 10**6, "\ud800\x00"])] == ["ok", "ok"]
    assert len(seen[0]) == 1000 and seen[1] == "?\x00"


def test_threads_may_search_at_once(serve):
    tool, found = search("retrieval", serve(retrieval)), {}

    def work(name):
        found[name] = tool([name])[0].text

    threads = [threading.Thread(target=work, args=(f"q{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {f"q{i}": f"[1] q{i}: text 0\n[2] q{i}: text 1" for i in range(8)}


def at_once(tool, queries):
    """What a tool gives to as many callers as there are queries, all at the same time."""
    with ThreadPoolExecutor(len(queries)) as callers:
        return [found for (found,) in callers.map(lambda query: tool([query]), queries)]


@pytest.mark.parametrize("cached", [True, False])
def test_callers_of_one_query_at_the_same_time_share_one_request(serve, tmp_path, cached):
    asked = []

    def answer(handler, body):
        asked.append(query_of(handler, body))
        time.sleep(0.5)
        return web("serper")(handler, body)

    cache = {"cache": str(tmp_path / "cache")} if cached else {}
    tool = search("serper", serve(answer), concurrency=8, **cache)
    found = at_once(tool, ["q", "r", *6 * ["q"]])
    assert sorted(asked) == ["q", "r"]
    assert [each.text.count("about r") > 0 for each in found] == [False, True, *6 * [False]]
    assert {each.outcome for each in found} == {"ok"}
    tool(["q"])
    assert len(asked) == (2 if cached else 3)  # which no request that has ended answers


def test_a_failure_is_that_of_all_who_wait_for_it_and_of_none_who_ask_later(serve, tmp_path):
    asked = []

    def answer(handler, body):
        asked.append(query_of(handler, body))
        time.sleep(0.5)
        return (404, "not yet") if len(asked) == 1 else web("serper")(handler, body)

    tool = search("serper", serve(answer), cache=str(tmp_path / "cache"))
    assert {each.outcome for each in at_once(tool, 5 * ["q"])} == {"error"} and asked == ["q"]
    assert tool(["q"])[0].outcome == "ok" and asked == ["q", "q"]


def test_a_batch_with_a_query_that_is_being_asked_sends_the_others(serve):
    sent = []

    def answer(handler, body):
        sent.append(body["queries"])
        time.sleep(0.5)
        return retrieval(handler, body)

    tool = search("retrieval", serve(answer))
    with ThreadPoolExecutor(1) as other:
        first = other.submit(tool, ["a"])
        while not sent:
            time.sleep(0.01)
        found = tool(["b", "a", "c", "b"])
    assert sent == [["a"], ["b", "c"]]
    assert found[1:2] == first.result()
    assert [each.text[:6] for each in found] == ["[1] b:", "[1] a:", "[1] c:", "[1] b:"]


def test_after_closing_a_search_is_an_error_observation(serve):
    tool = search("retrieval", serve(retrieval))
    tool.close()
    assert tool(["q"]) == [Observation("error: search failed", "error")]


def test_failures_are_logged_without_the_key_and_ever_more_rarely(serve, caplog):
    key = os.environ[NO_KEY]
    tool = search("serper", serve(lambda handler, body: (401, f"bad key {key}")))
    for i in range(12):
        tool([str(i)])
    lines = [record.getMessage() for record in caplog.records]
    assert [line[:26] for line in lines] == [
        "search failed (number 1): ",
        "search failed (number 10):",
    ]
    assert all("status 401" in line and key not in line for line in lines)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("retrieval", {"url": ""}, "tools.search.url='': tools.search.kind='retrieval' needs the"),
        ("searxng", {"url": "localhost"}, "tools.search.url='localhost': tools.search.kind='sea"),
        ("serper", {"key_variable": ""}, "tools.search.key_variable='': tools.search.kind='serper"),
        (
            "bing",
            {"key_variable": "RAPO_NO_SUCH"},
            "key_variable='RAPO_NO_SUCH': this .* not set",
        ),
    ],
)
def test_a_service_that_is_set_up_wrongly_is_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        search(kind, **({"url": "http://127.0.0.1:9"} | changes))


def test_a_missing_retrieval_server_is_refused_before_training(serve):
    def tools(url):
        settings = ToolsSettings(workers=1, search=SearchSettings("retrieval", url, deadline_s=5.0))
        return make_tools(settings, documents=["a"], encode=lambda texts: None)

    with pytest.raises(ValueError, match="no retrieval service answers .*start it"):
        tools("http://127.0.0.1:9")
    made = tools(serve(retrieval))
    assert made["search"](["q"])[0].outcome == "ok"
    for tool in made.values():
        tool.close()


def test_a_rate_limit_spaces_the_calls_of_all_threads():
    limit, turns = RateLimit(50.0), []

    def work():
        for _ in range(3):
            assert limit.wait(10.0)
            turns.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(turns) - min(turns) >= 8 / 50 - 0.01


def test_a_call_whose_turn_comes_too_late_is_a_time_out(serve):
    tool = search("serper", serve(web("serper")), per_second=0.5, deadline_s=1.0)
    outcomes = [observation.outcome for observation in tool(["a", "b", "c"])]
    assert sorted(outcomes) == ["ok", "timeout", "timeout"]
