"""API keys: read with a check, and cut out of every text, in each form that a key takes there."""

from __future__ import annotations

import base64
import html
import json
import re
import string
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.io.api_keys import KEY_CHARS, MASK, mask, read_api_key

KEY = "secret-key-1234"
CHARS = "".join(sorted(set(string.printable[:94]) - {"*"}))
KEYS = st.text(CHARS, min_size=8, max_size=80)
FORMS = {
    "plain": str,
    "repr": lambda key: repr(key)[1:-1],
    "repr of bytes": lambda key: repr(key.encode())[2:-1],
    "repr of repr": lambda key: repr(repr(key))[2:-2],
    "JSON": lambda key: json.dumps(key)[1:-1],
    "HTML": html.escape,
    "URL": lambda key: urllib.parse.quote(key, safe=""),
    "URL with slashes": urllib.parse.quote,
    "URL in lower case": lambda key: re.sub(
        "%..", lambda code: code[0].lower(), urllib.parse.quote(key, safe="")
    ),
    "form": urllib.parse.quote_plus,
    "URL twice": lambda key: urllib.parse.quote(urllib.parse.quote(key, safe=""), safe=""),
}
FRAMES = (
    "{}",
    "bad key {}",
    "Invalid header value b'Bearer {}\\n'",
    'status 401: {{"error": "{}"}} (3 attempts)',
    "http://host/{}/x",
    "http://host/v1?key={}&n=1",
    "https://me:{}@host:80/v1",
    "Max retries exceeded with url: /search?q=a&key={} (Caused by x)",
    "two\nlines {}\n{}",
)


@given(KEYS, st.sampled_from(sorted(FORMS)), st.sampled_from(FRAMES), st.data())
def test_a_key_is_masked_in_every_form_and_place_also_when_it_is_cut(key, name, frame, data):
    shown = data.draw(st.integers(KEY_CHARS, len(key)))
    form = FORMS[name](key[:shown])
    masked = mask(frame.replace("{}", form), [key])
    assert form not in masked and FORMS[name](key[:KEY_CHARS]) not in masked
    assert MASK in masked
    assert frame.startswith("http") or masked.startswith(frame.partition("{")[0][:9])


@given(KEYS, st.text(CHARS, max_size=9), st.text(CHARS, max_size=9), st.sampled_from(["+/", "-_"]))
def test_a_key_is_masked_in_the_base64_of_any_text_around_it(key, before, after, others):
    token = base64.b64encode(f"{before}{key}{after}".encode(), others.encode()).decode()
    start, end = -(-len(before) * 8 // 6), (len(before) + len(key)) * 8 // 6
    masked = mask(f"Authorization: Basic {token} refused", [key])
    assert masked.endswith(f"{MASK} refused") and masked.startswith("Authorization: Basic ")
    assert token[start : start + KEY_CHARS] not in masked and token[end - 8 : end] not in masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("GET http://me:pa/s@s@host/v1: no", "GET http://***@host/v1: no"),
        ("https://host/v1?q=a%20b&key=x failed", "https://host/v1?*** failed"),
        ("exceeded with url: /v1?x (Caused", "exceeded with url: /v1?*** (Caused"),
        ("url='http://host:80/v1?x=1'", "url='http://host:80/v1?***'"),
        ("really? a=b at me@host, http://host/v1", "really? a=b at me@host, http://host/v1"),
    ],
)
def test_user_info_and_query_strings_of_urls_are_masked(text, masked):
    assert mask(text) == masked


def test_a_short_key_is_masked_whole_and_a_short_piece_of_a_long_one_is_kept():
    assert mask("key abc, abd", ["abc", ""]) == "key ***, abd"
    assert mask(f"{KEY[:7]} {KEY[:8]} {KEY}", [KEY]) == f"{KEY[:7]} *** ***"


@pytest.mark.parametrize("value", ["", " ", "two\nlines", "schlüssel"])
def test_an_api_key_that_is_no_line_of_text_is_refused_with_its_variable(monkeypatch, value):
    monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(ValueError, match="judge.key_variable='THE_KEY': th(is|e) .*") as refused:
        read_api_key("THE_KEY", key="judge.key_variable")
    assert "\n" not in str(refused.value) and not value.strip() or value not in str(refused.value)


def test_an_api_key_is_read_without_the_space_around_it(monkeypatch):
    monkeypatch.setenv("THE_KEY", f" {KEY}\r\n")
    assert read_api_key("THE_KEY", key="judge.key_variable") == KEY
    assert read_api_key("", key="judge.key_variable") == ""


def test_a_key_in_the_place_of_its_variable_is_not_repeated():
    with pytest.raises(ValueError, match=r"judge.key_variable: expected the name of") as refused:
        read_api_key(KEY, key="judge.key_variable")
    assert KEY not in str(refused.value)
