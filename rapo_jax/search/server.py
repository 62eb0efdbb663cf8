"""A retrieval server over HTTP, in the wire format of Search-R1.

    python -m rapo_jax.search.server --corpus=passages.jsonl --port=8000
    python -m rapo_jax.search.server --index=FOLDER --port=8000

POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}
    -> {"result": [[{"document": {"id", "contents"}, "score": 0.7}, ...], ...]}
    One list a query, the best first. Without return_scores it is a list of documents alone.
GET /health -> {"status": "ok", "passages": 1234}

A request that is too large or malformed gets a status of 4xx with the reason, and its connection is
closed. SIGTERM and ctrl-C end the server with status 0 when the requests that it has are answered.

Queries that arrive together are searched together. An index on disk (stage search_index) takes a
corpus of any size; --corpus is read into memory. The corpus is JSON lines, plain or gzip, of
{"id", "contents"} with contents = "title"\\ntext as in wiki-18, or of {"id", "title", "text"}.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rapo_jax.config import KEYS
from rapo_jax.io.files import Json
from rapo_jax.search.batches import Batcher, Hits, Search
from rapo_jax.search.corpus import exact_search, read_corpus
from rapo_jax.search.index.search import open_index

MAX_BODY_BYTES = 4 << 20
MAX_QUERIES = 1024
MAX_TOPK = 1000
MAX_HITS = 10_000
"""Queries times topk: a response of about 10 MB of wiki-18's passages."""
BACKLOG = 1024
"""Connections that wait to be accepted; with Python's 5, 116 of 200 clients at once timed out."""
MAX_CONNECTIONS = 1024
"""Each has a thread; further ones are closed at once."""
IDLE_S = 60.0
"""An idle connection is closed after this time."""
DRAIN_S = 10.0
"""At most so long a server that ends waits for its requests."""


class Refused(Exception):
    """A bad request: its HTTP status and what is wrong with it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


Answer = Callable[[str, str, Callable[[], Json]], Json]
"""(method, path, reader of the body) -> the response's JSON; raises Refused."""


class SearchServer:
    """A running server; `url` is its address. Port 0 takes a free one."""

    def __init__(self, search: Search, *, passages: int, topk: int, host: str, port: int) -> None:
        batcher = Batcher(search)

        def answer(method: str, path: str, body: Callable[[], Json]) -> Json:
            if (method, path) == ("GET", "/health"):
                return {"status": "ok", "passages": passages}
            if path not in ("/health", "/retrieve"):
                raise Refused(404, "there are POST /retrieve and GET /health")
            if (method, path) != ("POST", "/retrieve"):
                raise Refused(405, f"{path} takes no {method}")
            queries, k, scores = _request(body(), topk)
            return {"result": [_result(hits, scores) for hits in batcher(queries, k)]}

        self._batcher = batcher
        try:
            self._server = _Server((host, port), partial(_Handler, answer))
        except OSError as error:
            batcher.close()
            raise ValueError(f"--host={host} --port={port}: {error.strerror or error}") from None
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), daemon=True, name="search_server"
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the server; requests that have arrived are answered first, for up to DRAIN_S."""
        end = time.monotonic() + DRAIN_S
        self._server.shutdown()
        self._server.accept_waiting(end)
        while self._server.busy and time.monotonic() < end:
            time.sleep(0.01)
        self._server.server_close()
        self._batcher.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = BACKLOG
    daemon_threads = True
    timeout = 0.0

    def __init__(self, place: tuple[str, int], handler: Callable[..., _Handler]) -> None:
        self.busy: set[object] = set()  # connections whose request is not answered yet
        self.open: set[object] = set()
        self.draining = False
        self._none_waits = False
        super().__init__(place, handler)

    def accept_waiting(self, end: float) -> None:
        """Accepts the connections that wait already, until the time `end`."""
        self.draining = True
        while not self._none_waits and time.monotonic() < end:
            self.handle_request()

    def handle_timeout(self) -> None:
        self._none_waits = True

    def process_request(self, request, client_address) -> None:
        if len(self.open) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        self.open.add(request)
        self.busy.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.busy.discard(request)
        self.open.discard(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: _Server

    def __init__(self, answer: Answer, request, client_address, server) -> None:
        self._answer = answer
        super().__init__(request, client_address, server)  # serves until the connection ends

    def parse_request(self) -> bool:
        self.server.busy.add(self.connection)
        return super().parse_request()

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.server.busy.discard(self.connection)

    def do_GET(self) -> None:
        self.close_connection |= "Content-Length" in self.headers  # its body is not read
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _body(self) -> Json:
        length = self.headers.get("Content-Length", "").lstrip("0") or "0"
        if "Content-Length" not in self.headers or "Transfer-Encoding" in self.headers:
            raise Refused(411, "a Content-Length is needed")
        if not length.isdecimal():
            raise Refused(400, "the Content-Length is no number")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:  # int() refuses thousands of digits
            raise Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is no JSON ({error})") from None

    def _serve(self, method: str) -> None:
        try:
            status, value = 200, self._answer(method, self.path, self._body)
        except Refused as refused:
            status, value = refused.status, {"detail": str(refused)}
            self.close_connection = True  # its body may be unread
        except (TimeoutError, ConnectionError):
            self.close_connection = True
            return
        except Exception as error:
            print(f"[search] {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            status, value = 500, {"detail": "the search failed"}
            self.close_connection = True
        content = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if self.close_connection or self.server.draining:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: a training run sends thousands of requests."""


def _request(body: Json, topk: int) -> tuple[list[str], int, bool]:
    """(queries, number of hits, whether with scores) of a request's body."""
    if not isinstance(body, Mapping):
        raise Refused(422, "the body is no JSON object")
    queries, k = body.get("queries"), body.get("topk") or topk
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise Refused(422, "queries is no list of texts")
    if len(queries) > MAX_QUERIES:
        raise Refused(422, f"queries has {len(queries)} texts; at most {MAX_QUERIES} at a time")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_TOPK:
        raise Refused(422, f"topk is no whole number of 1 to {MAX_TOPK}")
    if len(queries) * k > MAX_HITS:
        hits = f"{len(queries)} queries times a topk of {k}"
        raise Refused(422, f"{hits} are more than {MAX_HITS} hits; send fewer at a time")
    return queries, k, bool(body.get("return_scores"))


def _result(hits: Hits, scores: bool) -> list[Json]:
    if not scores:
        return [document._asdict() for document, _ in hits]
    return [{"document": document._asdict(), "score": score} for document, score in hits]


def _search(flags: argparse.Namespace) -> tuple[Search, int]:
    """The search that the flags name, and its number of passages."""
    if flags.index is not None:
        index = open_index(flags.index)
        return index, len(index)
    documents, report = read_corpus(flags.corpus, malformed=flags.malformed)
    print(f"[search] {report.summary()}", flush=True)
    return exact_search(documents, width=flags.width), len(documents)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serves a corpus to Search-R1's clients.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", help="JSON lines of passages, .gz too, into memory")
    source.add_argument("--index", help="folder of an index on disk, of the stage search_index")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network")
    parser.add_argument("--port", type=int, default=8000)
    topk, width = KEYS["tools.passages"].value, KEYS["tools.search_width"].value
    text = f"hits where a request names none; default {topk}"
    parser.add_argument("--topk", type=int, default=topk, help=text)
    text = f"numbers of a corpus's embedding; default {width}"
    parser.add_argument("--width", type=int, default=width, help=text)
    malformed = KEYS["search_index.malformed"]
    text = f"{malformed.meaning}; default {malformed.value}"
    choices = tuple(malformed.choices)
    parser.add_argument("--malformed", choices=choices, default=malformed.value, help=text)
    flags = parser.parse_args(arguments)
    if not 0 <= flags.port < 2**16:
        parser.error(f"--port={flags.port}: a port is at most 65535")
    try:
        search, passages = _search(flags)
        server = SearchServer(
            search, passages=passages, topk=flags.topk, host=flags.host, port=flags.port
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"[search] {passages} passages at {server.url}/retrieve", flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    server.close()
    print("[search] stopped", flush=True)


if __name__ == "__main__":
    main()
