"""Requests to each search service, and responses of any shape."""

from __future__ import annotations

import os

import pytest

from rapo_jax.tools.observation import Observation
from rapo_jax.tools.search_apis import APIS
from tests.tools.services import NO_KEY, SHAPES, retrieval, search, web

EMPTY = Observation("nothing found", "empty")


def test_a_retrieval_server_is_asked_in_search_r1s_format_once_for_all_queries(serve):
    seen = []

    def answer(handler, body):
        seen.append((handler.path, body))
        return retrieval(handler, body)

    url = serve(answer)
    found = search("retrieval", url)(["a  b", "c", "a b", ""])
    wanted = {"queries": ["a b", "c"], "topk": 2, "return_scores": True}
    assert seen == [("/retrieve", wanted)]
    assert found[0] == found[2] == Observation("[1] a b: text 0\n[2] a b: text 1", "ok")
    assert found[1].text.startswith("[1] c: ")
    assert found[3] == Observation("error: empty query", "empty")
    assert search("retrieval", f"{url}/retrieve")(["c"]) == [found[1]]


def test_documents_without_scores_or_with_separate_fields_are_read(serve):
    hits = [{"id": "1", "contents": "plain"}, {"document": {"title": "T", "text": "fields"}}]
    url = serve(lambda handler, body: (200, {"result": [hits]}))
    assert search("retrieval", url)(["q"])[0].text == "[1] plain\n[2] T: fields"


@pytest.mark.parametrize("kind", SHAPES)
def test_a_web_search_gives_its_first_results(serve, kind):
    queries = ["who is A?", "b & c"]
    found = search(kind, serve(web(kind)))(queries)
    assert found == [
        Observation(f"[1] about {q}: text 0\n[2] about {q}: text 1", "ok") for q in queries
    ]


@pytest.mark.parametrize(
    ("kind", "header"),
    [("bing", "Ocp-Apim-Subscription-Key"), ("serper", "X-API-KEY"), ("searxng", "Authorization")],
)
def test_the_key_is_sent_in_the_header_of_the_service(serve, kind, header):
    seen = []

    def answer(handler, body):
        seen.append(handler.headers[header])
        return web(kind)(handler, body)

    search(kind, serve(answer), key_variable=NO_KEY)(["q"])
    assert seen == [("Bearer " if header == "Authorization" else "") + os.environ[NO_KEY]]


@pytest.mark.parametrize("kind", APIS)
@pytest.mark.parametrize(
    "answer",
    [
        (500, "broken"),
        (401, "who are you"),
        (200, "text"),
        (200, []),
        (200, {"result": "x", "organic": 3, "results": None, "webPages": []}),
        (200, {"result": [], "organic": {}, "results": {}, "webPages": {"value": 3}}),
    ],
    ids=str,
)
def test_an_answer_of_another_shape_is_an_error_observation(serve, kind, answer):
    found = search(kind, serve(lambda handler, body: answer))(["q"])
    (observation,) = found
    assert observation.outcome == "error"
    assert observation.text.startswith("error: search failed (")
    assert "127.0.0.1" not in observation.text and os.environ[NO_KEY] not in observation.text


@pytest.mark.parametrize("kind", APIS)
def test_items_of_another_type_are_skipped(serve, kind):
    junk = [None, 3, "x", [], {}, {"document": 3}, {"contents": 3, "snippet": 3, "content": []}]
    good = [{"contents": "good", "snippet": "good", "content": "good", "title": 3, "name": []}]
    items = junk + good
    value = {"result": [items], "organic": items, "results": items, "webPages": {"value": items}}
    url = serve(lambda handler, body: (200, value))
    assert search(kind, url)(["q"]) == [Observation("[1] good", "ok")]


@pytest.mark.parametrize("kind", APIS)
def test_no_hits_are_an_empty_observation(serve, kind):
    value = {"result": [[]], "organic": [], "results": []}
    assert search(kind, serve(lambda handler, body: (200, value)))(["q"]) == [EMPTY]


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("searxng", {"results": [], "unresponsive_engines": [["google", "CAPTCHA"]]}, "CAPTCHA"),
        ("bing", {"errors": [{"code": "InvalidRequest", "message": "Blocked."}]}, "Blocked."),
    ],
)
def test_engines_that_refuse_are_a_failure_with_its_reason_and_not_an_empty_result(
    serve, kind, value, reason, caplog
):
    found = search(kind, serve(lambda handler, body: (200, value)))(["q"])
    assert found == [Observation("error: search failed (refused)", "error")]
    assert reason in caplog.text


def test_results_beside_a_blocked_engine_are_results(serve):
    value = {"results": [{"content": "good"}], "unresponsive_engines": [["google", "CAPTCHA"]]}
    found = search("searxng", serve(lambda handler, body: (200, value)))(["q"])
    assert found == [Observation("[1] good", "ok")]


def test_a_retrieval_server_that_forgets_a_query_is_an_error(serve):
    found = search("retrieval", serve(lambda handler, body: (200, {"result": [[]]})))(["a", "b"])
    assert [observation.outcome for observation in found] == ["error"] * 2
