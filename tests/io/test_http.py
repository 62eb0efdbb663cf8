"""JSON over HTTP against servers that are slow, busy, broken or hostile."""

from __future__ import annotations

import gzip
import json
import time

import pytest

from rapo_jax.io.http import HttpFailure, JsonClient, Limits, read_api_key

KEY = "secret-key-1234"


def client(*, deadline_s=10.0, attempts=3, max_bytes=10_000):
    limits = Limits(deadline_s, attempts, backoff_s=0.01, max_bytes=max_bytes)
    return JsonClient(limits, headers={"X-Key": KEY}, secrets=[KEY])


def failure(work, *arguments) -> HttpFailure:
    with pytest.raises(HttpFailure) as caught:
        work(*arguments)
    return caught.value


def write(handler, head: bytes, *pieces: bytes, pause_s=0.0):
    """Bytes as they are, whatever HTTP says."""
    handler.wfile.write(head)
    for piece in pieces:
        time.sleep(pause_s)
        handler.wfile.write(piece)
        handler.wfile.flush()
    handler.close_connection = True


def test_a_post_sends_and_returns_json_with_its_headers(serve):
    url = serve(lambda handler, body: (200, {"got": body, "key": handler.headers["X-Key"]}))
    assert client().post(url, {"a": [1]}) == {"got": {"a": [1]}, "key": KEY}


def test_a_get_sends_its_parameters_quoted(serve):
    url = serve(lambda handler, body: (200, handler.path))
    assert client().get(url, {"q": "a b&c", "n": 3}) == "/?q=a+b%26c&n=3"


@pytest.mark.parametrize("value", ["", " ", "two\nlines", "schlüssel"])
def test_an_api_key_that_is_no_line_of_text_is_refused_with_its_variable(monkeypatch, value):
    monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(ValueError, match="judge.key_variable='THE_KEY': th(is|e) .*"):
        read_api_key("THE_KEY", key="judge.key_variable")


def test_an_api_key_is_read_without_the_space_around_it(monkeypatch):
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")
    assert read_api_key("THE_KEY", key="judge.key_variable") == KEY
    assert read_api_key("", key="judge.key_variable") == ""


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(serve, status):
    statuses = [status, status, 200]
    url = serve(lambda handler, body: (statuses.pop(0), "late"))
    assert client().post(url, 1) == "late"


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_asked_again(serve, status):
    asked = []
    url = serve(lambda handler, body: asked.append(1) or (status, "no such thing"))
    found = failure(client().post, url, 1)
    assert (found.kind, found.status, len(asked)) == ("status", status, 1)
    assert "no such thing" in str(found)


def test_the_last_failure_is_raised_with_the_number_of_attempts(serve):
    url = serve(lambda handler, body: (503, "busy"))
    found = failure(client().post, f"{url}/path", 1)
    assert str(found) == f'POST {url}/path: status 503: "busy" (3 attempts)'


def test_no_message_holds_a_secret(serve):
    url = serve(lambda handler, body: (401, f"bad key {handler.headers['X-Key']}"))
    with_user = url.replace("//", f"//me:{KEY}@") + f"/?key={KEY}"
    for found in (failure(client().post, url, 1), failure(client().post, with_user, 1)):
        assert KEY not in str(found) and "***" in str(found)


def test_the_wait_that_a_server_asks_for_is_kept_within_the_deadline(serve):
    times = []

    def answer(handler, body):
        times.append(time.monotonic())
        if len(times) == 1:
            write(handler, b"HTTP/1.0 429 Busy\r\nRetry-After: 0.3\r\n\r\n")
            return None
        return 200, "now"

    assert client().post(serve(answer), 1) == "now"
    assert times[1] - times[0] >= 0.3

    for later in (b"3600", b"Fri, 31 Dec 2100 23:59:59 GMT", b"soon"):
        head = b"HTTP/1.0 429 Busy\r\nRetry-After: " + later + b"\r\n\r\n"
        started = time.monotonic()
        found = failure(client().post, serve(lambda h, _, head=head: write(h, head)), 1)
        assert found.status == 429 and time.monotonic() - started < 30


@pytest.mark.parametrize("pieces", [[b" "] * 200, [b"HTTP/1.0 200 OK\r\n\r\n"] + [b" "] * 200])
def test_a_server_that_sends_a_byte_now_and_then_is_abandoned_at_the_deadline(serve, pieces):
    url = serve(lambda handler, body: write(handler, b"", *pieces, pause_s=0.05))
    started = time.monotonic()
    assert failure(client(deadline_s=0.4).post, url, 1).kind == "timeout"
    assert time.monotonic() - started < 5  # all pieces take 10 s


def test_a_server_that_never_answers_is_a_time_out(serve):
    url = serve(lambda handler, body: time.sleep(3))
    assert failure(client(deadline_s=0.2).post, url, 1).kind == "timeout"


def test_a_server_that_is_not_there_is_a_network_failure():
    assert failure(client().post, "http://127.0.0.1:9/x", 1).kind == "network"


@pytest.mark.parametrize(
    "body", [b'{"a": [1, 2', b"<html>", b"", b"\xff\xfe", b"[" * 9000], ids=repr
)
def test_an_answer_that_is_no_json_is_asked_again_and_is_a_failure(serve, body):
    asked = []

    def answer(handler, _):
        asked.append(1)
        write(handler, b"HTTP/1.0 200 OK\r\n\r\n", body)

    found = failure(client().post, serve(answer), 1)
    assert found.kind == "body" and len(asked) == 3


def test_a_body_cut_off_before_its_length_is_a_failure(serve):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    url = serve(lambda handler, body: write(handler, head, b'{"a": 1'))
    assert failure(client().post, url, 1).kind in ("body", "network")


def test_a_huge_body_is_cut_off_at_the_limit_and_not_asked_again(serve):
    sent = []

    def answer(handler, _):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(1000):
            handler.wfile.write(b" " * 100_000)
            sent.append(1)
        return None

    found = failure(client().post, serve(answer), 1)
    assert found.kind == "body" and "larger than 10000 bytes" in str(found)
    assert len(sent) < 1000


def test_a_small_zipped_body_cannot_fill_the_memory(serve):
    bomb = gzip.compress(b" " * 50_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    url = serve(lambda handler, body: write(handler, head.encode(), bomb))
    assert "larger than" in str(failure(client().post, url, 1))


def test_zipped_and_chunked_answers_are_read(serve):
    zipped = gzip.compress(json.dumps({"a": "b" * 100}).encode())
    half = len(zipped) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (zipped[:half], zipped[half:], b""))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = serve(lambda handler, body: write(handler, head, chunks))
    assert client().post(url, 1) == {"a": "b" * 100}


def test_a_redirect_is_not_followed_with_the_key(serve):
    seen = []
    other = serve(lambda handler, body: seen.append(1) or (200, "stolen"))
    head = f"HTTP/1.1 307 Go\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n".encode()
    found = failure(client().post, serve(lambda handler, body: write(handler, head)), 1)
    assert found.status == 307 and seen == []
