"""JSON over HTTP against servers that are slow, busy, broken or hostile."""

from __future__ import annotations

import base64
import gzip
import json
import time
from urllib.parse import quote

import pytest

from rapo_jax.io.http import HttpFailure, JsonClient, Limits

KEY = "secret-key-1234"


def client(*, deadline_s=10.0, attempts=3, max_bytes=10_000, header="X-Key", value=KEY, key=KEY):
    limits = Limits(deadline_s, attempts, backoff_s=0.01, max_bytes=max_bytes)
    return JsonClient(limits, key=key, headers=lambda _: {header: value} if value else {})


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
    sent = []
    url = serve(lambda handler, body: sent.append(handler.headers["X-Key"]) or (200, {"got": body}))
    assert client().post(url, {"a": [1]}) == {"got": {"a": [1]}} and sent == [KEY]


def test_a_get_sends_its_parameters_quoted(serve):
    url = serve(lambda handler, body: (200, handler.path))
    assert client().get(url, {"q": "a b&c", "n": 3}) == "/?q=a+b%26c&n=3"


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


def test_no_message_holds_a_key(serve):
    url = serve(lambda handler, body: (401, f"bad key {handler.headers['X-Key']}"))
    with_user = url.replace("//", f"//me:{KEY}@") + f"/?key={KEY}"
    for found in (failure(client().post, url, 1), failure(client().post, with_user, 1)):
        assert KEY not in str(found) and "***" in str(found)


@pytest.mark.parametrize(
    "answer",
    [
        lambda h, _: (401, h.headers["X-Key"][:12]),
        lambda h, _: (401, base64.b64encode(h.headers["X-Key"].encode()).decode()),
        lambda h, _: (401, quote(h.headers["X-Key"], safe="")),
        lambda h, _: (401, " " * 180 + h.headers["X-Key"]),
        lambda h, _: (401, f"{' ' * 960}{h.headers['X-Key']}"),
    ],
)
def test_a_key_that_a_server_sends_back_in_another_form_is_masked(serve, answer):
    key = "s3cret/key=+with&signs"
    found = str(failure(client(value=key, key=key).post, serve(answer), 1))
    forms = (key, base64.b64encode(key.encode()).decode(), quote(key, safe=""))
    assert all(form[:8] not in found for form in forms) and found.endswith('***"')


def test_a_key_that_is_no_header_is_not_printed_by_the_http_library():
    for key in (f"{KEY}\n", f"{KEY}\r\nX: y", f" {KEY}"):
        found = failure(client(value=f"Bearer {key}", key=key).post, "http://127.0.0.1:9/x", 1)
        assert found.kind == "network" and KEY[:8] not in str(found)


def test_the_parts_of_an_address_that_may_be_keys_are_masked(serve):
    url = serve(lambda h, _: (401, [h.headers["Authorization"], h.path]))
    url = f"{url.replace('//', '//some-user:pa%2Fss@')}/v1?key=abcdefgh&n=1"
    for address in (url, url.replace("127.0.0.1", "[::1"), url.replace("http", "ftp")):
        found = str(failure(client(value="").post, address, 1))
        leaks = ("some-user", "pa%2Fss", "pa/ss", "abcdefgh", base64.b64encode(b"pa/ss").decode())
        assert not [leak for leak in leaks if leak[:8] in found], found


def test_a_reply_holds_no_key_and_no_half_characters(serve):
    reply = {"a": [f"your key {KEY} is", 1, None], "b": "\ud800", KEY[:6]: {"c": KEY[:9]}}
    url = serve(lambda handler, body: (200, reply))
    masked = {"a": ["your key *** is", 1, None], "b": "?", KEY[:6]: {"c": "***"}}
    assert client().post(url, 1) == masked
    url = serve(lambda handler, body: (200, "not a key"))
    assert client(key="a").post(url, 1) == "not a key"  # too short to be a real one


def test_a_netrc_file_and_the_users_of_an_address_do_not_replace_the_key(
    serve, monkeypatch, tmp_path
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password of-another-service\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    url = serve(lambda handler, body: (200, [str(handler.headers["Authorization"])]))
    sent = client(header="Authorization", value="Bearer k", key="k")
    assert sent.post(url, 1) == sent.post(url.replace("//", "//me:pw@"), 1) == ["Bearer k"]
    assert client(value="").post(url, 1) == ["None"]


def test_the_certificates_of_the_environment_are_used(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/certificates")
    assert "/nowhere/certificates" in str(failure(client().post, "https://127.0.0.1:9", 1))


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_a_proxy_of_the_environment_is_used_only_if_it_is_asked_for(serve, monkeypatch, value):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = serve(lambda handler, body: (200, "from the proxy"))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("RAPO_USE_PROXY", value)
    url = serve(lambda handler, body: (200, "directly"))
    assert client().post(url, 1) == ("from the proxy" if value == "1" else "directly")


def test_a_reply_that_the_caller_refuses_is_asked_for_again(serve):
    replies = ["", "", "full"]
    url = serve(lambda handler, body: (200, replies.pop(0)))

    def check(reply):
        if not reply:
            raise HttpFailure("empty", "nothing in it")

    assert client().post(url, 1, check=check) == "full"
    replies += [""] * 3
    found = failure(lambda: client().post(url, 1, check=check))
    assert (found.kind, str(found)) == ("empty", f"POST {url}: nothing in it (3 attempts)")


@pytest.mark.parametrize(
    "wait",
    ["Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "nan",
     "Fri, 31 Dec 9999 23:59:59 -2359", "-1e999", "x, , ,", "Mon, 99 Foo 1 9:9:9 x", "-"],
)  # fmt: skip
def test_a_wait_that_is_no_date_is_no_wait(serve, wait):
    heads = [f"HTTP/1.0 429 Busy\r\nRetry-After: {wait}\r\n\r\n".encode()]

    def answer(handler, _):
        return write(handler, heads.pop()) if heads else (200, "now")

    if "9999 23" in wait and "99999" not in wait:
        assert failure(client().post, serve(answer), 1).status == 429  # a date, beyond the deadline
    else:
        assert client().post(serve(answer), 1) == "now"


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
