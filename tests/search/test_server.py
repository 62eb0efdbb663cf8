"""The retrieval server: its wire format, and clients that misbehave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from rapo_jax.config import KEYS
from rapo_jax.search import server as server_module
from rapo_jax.search.batches import Document
from rapo_jax.search.corpus import exact_search
from rapo_jax.search.server import IDLE_S, MAX_BODY_BYTES, MAX_QUERIES, SearchServer, main

DOCUMENTS = [
    Document("1", '"Ada"\nAda was born in Dorim'),
    Document("2", '"Kavel"\nKavel founded Dorim'),
    Document("3", '"Bread"\nflour and water'),
]


def open_server() -> SearchServer:
    search = exact_search(DOCUMENTS, width=64)
    return SearchServer(search, passages=3, topk=2, host="127.0.0.1", port=0)


@pytest.fixture(scope="module")
def server() -> Iterator[SearchServer]:
    with closing(open_server()) as found:
        yield found


def post(server, **body):
    return requests.post(f"{server.url}/retrieve", json=body, timeout=20)


def test_hits_have_documents_and_scores_and_the_best_is_first(server):
    found = post(server, queries=["who founded Dorim", "flour"], topk=3, return_scores=True)
    assert found.status_code == 200
    first, second = found.json()["result"]
    assert first[0]["document"] == {"id": "2", "contents": '"Kavel"\nKavel founded Dorim'}
    assert second[0]["document"]["id"] == "3"
    scores = [hit["score"] for hit in first]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_without_scores_hits_are_documents_and_topk_has_a_default(server):
    assert post(server, queries=["flour"]).json()["result"][0][0] == DOCUMENTS[2]._asdict()
    for k, wanted in ((None, 2), (0, 2), (1, 1), (9, 3)):
        (hits,) = post(server, queries=["flour"], topk=k).json()["result"]
        assert len(hits) == wanted


def test_a_connection_is_held_for_a_while_and_not_for_ever():
    with closing(open_server()) as server, requests.Session() as session:
        session.get(f"{server.url}/health", timeout=20)
        (held,) = server._server.open
        assert held.gettimeout() == IDLE_S > 0


def test_no_queries_have_no_results(server):
    assert post(server, queries=[]).json() == {"result": []}


def test_the_health_check_reports_the_number_of_passages(server):
    found = requests.get(f"{server.url}/health", timeout=20)
    assert found.json() == {"status": "ok", "passages": 3}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "queries is no list of texts"),
        ({"queries": "flour"}, "queries is no list of texts"),
        ({"queries": [1]}, "queries is no list of texts"),
        ({"queries": ["a"] * (MAX_QUERIES + 1)}, f"queries has {MAX_QUERIES + 1} texts"),
        ({"queries": ["a"], "topk": -1}, "topk is no whole number of 1 to"),
        ({"queries": ["a"], "topk": "3"}, "topk is no whole number"),
        ({"queries": ["a"], "topk": 10**9}, "topk is no whole number"),
        ({"queries": ["a"], "topk": True}, "topk is no whole number"),
    ],
)
def test_a_request_of_another_shape_is_refused_with_the_reason(server, body, problem):
    found = post(server, **body)
    assert found.status_code == 422 and found.json()["detail"].startswith(problem)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused(server, body):
    found = requests.post(f"{server.url}/retrieve", data=body, timeout=20)
    assert found.status_code == 400 and "no JSON" in found.json()["detail"]
    assert requests.post(f"{server.url}/retrieve", json=[1], timeout=20).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/retrieve", 405), ("POST", "/health", 405), ("GET", "/", 404), ("POST", "/x", 404)],
)
def test_other_paths_and_methods_are_refused(server, method, path, status):
    assert requests.request(method, server.url + path, timeout=20).status_code == status


def raw(server, *parts: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Content-Length: {MAX_BODY_BYTES + 1}", 413),
        ("Content-Length: " + "9" * 5000, 413),
        ("Content-Length: -1", 400),
        ("Content-Length: many", 400),
        ("Content-Length: 1_0", 400),
        ("Transfer-Encoding: chunked", 411),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", 411),
        ("X: y", 411),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_body_of_bad_length_is_not_read_and_closes_the_connection(server, header, status):
    head = f"POST /retrieve HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode()
    answer = raw(server, head, b"GET /health HTTP/1.1\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and answer.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answer


def test_a_body_where_none_belongs_is_not_read_as_the_next_request(server):
    inner = b"POST /retrieve HTTP/1.1\r\n\r\n"
    head = f"GET /health HTTP/1.1\r\nContent-Length: {len(inner)}\r\n\r\n".encode()
    assert raw(server, head, inner).count(b"HTTP/1.1 ") == 1


def test_the_hits_of_a_request_are_bounded(server):
    found = post(server, queries=["flour"] * 11, topk=1000)
    assert found.status_code == 422
    assert found.json()["detail"] == (
        "11 queries times a topk of 1000 are more than 10000 hits; send fewer at a time"
    )
    assert post(server, queries=["flour"] * 10, topk=1000).status_code == 200


def test_many_clients_at_once_are_served(server):
    place = urlsplit(server.url)
    connections = [socket.create_connection((place.hostname, place.port)) for _ in range(200)]
    for connection in connections:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    for connection in connections:
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        connection.close()


def test_connections_beyond_the_bound_are_closed_and_the_others_served(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    server = open_server()  # of its own: nobody else is connected
    place = urlsplit(server.url)
    waiting = [socket.create_connection((place.hostname, place.port)) for _ in range(3)]
    for connection in waiting:
        connection.sendall(b"GET /health HTTP/1.0\r\n")  # its headers do not end
    with socket.create_connection((place.hostname, place.port)) as beyond:
        beyond.settimeout(20)
        assert beyond.recv(100) == b""
    for connection in waiting:
        connection.sendall(b"\r\n")
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        connection.close()
    server.close()


def test_a_server_that_ends_answers_the_requests_that_it_has():
    begun, ended = threading.Event(), threading.Event()

    def search(queries, topk):
        begun.set()
        ended.wait(10)
        return [[(DOCUMENTS[0], 1.0)] for _ in queries]

    slow = SearchServer(search, passages=1, topk=1, host="127.0.0.1", port=0)
    idle = requests.Session()
    assert idle.get(f"{slow.url}/health", timeout=20).status_code == 200  # its connection is kept
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(post, slow, queries=["q"])
        begun.wait(10)
        closing = threads.submit(slow.close)
        assert not closing.done()
        ended.set()
        assert answer.result().json()["result"] == [[DOCUMENTS[0]._asdict()]]
        closing.result(timeout=5)
    with pytest.raises(requests.ConnectionError):
        post(slow, queries=["q"])


def test_a_client_that_disconnects_leaves_the_server_running(server):
    place = urlsplit(server.url)
    connection = socket.create_connection((place.hostname, place.port))
    connection.sendall(b"POST /retrieve HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    connection.close()
    assert post(server, queries=["flour"]).status_code == 200


def test_a_search_that_fails_is_status_500_and_the_next_one_is_served(capsys):
    def search(queries, topk):
        if "bad" in queries:
            raise RuntimeError("no luck")
        return [[(DOCUMENTS[0], 1.0)] for _ in queries]

    failing = SearchServer(search, passages=1, topk=1, host="127.0.0.1", port=0)
    assert post(failing, queries=["bad"]).status_code == 500
    assert post(failing, queries=["good"]).status_code == 200
    assert "no luck" in capsys.readouterr().err
    failing.close()


def test_a_taken_port_is_an_error(server):
    port = urlsplit(server.url).port
    with pytest.raises(ValueError, match=f"--port={port}: .*in use"):
        SearchServer(lambda q, k: [], passages=0, topk=1, host="127.0.0.1", port=port)


def test_the_command_refuses_a_missing_corpus(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([f"--corpus={tmp_path / 'none'}", "--port=0"])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "cannot be read" in error


def test_the_command_serves_a_file_until_sigterm_and_ends_with_0(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(document._asdict()) + "\n" for document in DOCUMENTS))
    process = subprocess.Popen(
        [sys.executable, "-m", "rapo_jax.search.server", f"--corpus={corpus}", "--port=0"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().endswith("3 records of 3 lines\n")
        line = process.stdout.readline()
        assert line.startswith("[search] 3 passages at http://127.0.0.1:")
        found = requests.post(line.split()[-1], json={"queries": ["flour"]}, timeout=20).json()
        assert found["result"][0][0]["id"] == "3"
        process.terminate()
        assert process.stdout.readline() == "[search] stopped\n" and process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_the_flags_have_the_defaults_of_the_keys(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for key in ("tools.passages", "tools.search_width", "search_index.malformed"):
        assert f"; default {KEYS[key].value}" in shown
