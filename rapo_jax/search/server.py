"""A retrieval server over HTTP, in the wire format of Search-R1.

    python -m rapo_jax.search.server --corpus=passages.jsonl --port=8000
    python -m rapo_jax.search.server --index=FOLDER --port=8000

POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}
    -> {"result": [[{"document": {"id", "contents"}, "score": 0.7}, ...], ...]}
    One list a query, the best first. Without return_scores it is a list of documents alone.
GET /health -> {"status": "ok", "passages": 1234}

Queries that arrive together are searched together. An index on disk (stage search_index) takes a
corpus of any size; --corpus is read into memory. The corpus is JSON lines, plain or gzip, of
{"id", "contents"} with contents = "title"\\ntext as in wiki-18, or of {"id", "title", "text"}.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rapo_jax.io.files import Json
from rapo_jax.search.batches import Batcher, Hits, Search
from rapo_jax.search.corpus import exact_search, read_corpus
from rapo_jax.search.index.search import open_index

MAX_BODY_BYTES = 4 << 20
MAX_QUERIES = 1024
MAX_TOPK = 1000
IDLE_S = 60.0
"""An idle connection is closed after this time."""


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
            self._server = ThreadingHTTPServer((host, port), partial(_Handler, answer))
        except OSError as error:
            batcher.close()
            raise ValueError(f"--host={host} --port={port}: {error.strerror or error}") from None
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), daemon=True, name="search_server"
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits until the server is closed."""
        self._thread.join()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._batcher.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def __init__(self, answer: Answer, request, client_address, server) -> None:
        self._answer = answer
        super().__init__(request, client_address, server)  # serves until the connection ends

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _body(self) -> Json:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(411, "a Content-Length is needed")
        if int(length) > MAX_BODY_BYTES:
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
        content = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
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
    parser.add_argument("--topk", type=int, default=3, help="hits where a request names none")
    parser.add_argument("--width", type=int, default=1024, help="numbers of a corpus's embedding")
    parser.add_argument("--malformed", choices=("skip", "fail"), default="skip")
    flags = parser.parse_args(arguments)
    try:
        search, passages = _search(flags)
        server = SearchServer(
            search, passages=passages, topk=flags.topk, host=flags.host, port=flags.port
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"[search] {passages} passages at {server.url}/retrieve", flush=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        server.close()


if __name__ == "__main__":
    main()
