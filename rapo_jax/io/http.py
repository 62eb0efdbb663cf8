"""JSON over HTTP: a hard deadline, retries with backoff, a bound on the size of the response.

Servers may be slow, busy, broken or hostile; every call ends in a value or an `HttpFailure` within
the deadline. Keys are sent in headers only, and are masked in every message and reply. `~/.netrc`
is not read. Of the environment, REQUESTS_CA_BUNDLE (certificates) is used, and HTTPS_PROXY,
HTTP_PROXY and NO_PROXY only with RAPO_USE_PROXY=1.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import json
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from http.cookiejar import DefaultCookiePolicy
from typing import NamedTuple, TypeVar

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from rapo_jax.io.api_keys import KEY_CHARS, mask, mask_keys
from rapo_jax.io.files import Json

BUSY = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
"""Statuses after which another attempt may succeed; those from 520 on are of Cloudflare."""
SHOWN_CHARS = 200
READ_CHARS = 4000
"""Of a failure's text, before it is masked: the time of masking is bounded."""

Value = TypeVar("Value")


def proxies_are_used() -> bool:
    """Whether the environment's proxies are: only with RAPO_USE_PROXY=1."""
    return os.environ.get("RAPO_USE_PROXY") == "1"


class Limits(NamedTuple):
    """Limits of one call."""

    deadline_s: float
    """Of all attempts together."""
    attempts: int
    backoff_s: float
    """Before the second attempt; doubled for each later one."""
    max_bytes: int
    """Of the response's body, unzipped."""


class HttpFailure(Exception):
    """A failed call, in one line. `kind` is timeout, status, network, body, empty or
    refused."""

    def __init__(
        self, kind: str, text: str, *, status: int = 0, retry: bool = True, wait_s: float = 0.0
    ) -> None:
        super().__init__(text)
        self.kind, self.status = kind, status
        self.retry = retry
        """Whether another attempt may succeed."""
        self.wait_s = wait_s
        """Seconds that the server asked to wait."""


Check = Callable[[Json], object]
"""Raises HttpFailure for a reply after which the server is to be called again."""


def bearer(key: str) -> dict[str, str]:
    """The header that most services read an API key from."""
    return {"Authorization": f"Bearer {key}"}


class JsonClient:
    """Calls from any thread, over kept connections. `key`, '' for none, is sent in `headers(key)`,
    and masked in messages and replies; in replies only if it has KEY_CHARS or more, since a shorter
    one may be a common word."""

    def __init__(
        self,
        limits: Limits,
        *,
        key: str = "",
        headers: Callable[[str], Mapping[str, str]] = bearer,
        connections: int = 8,
    ) -> None:
        self._limits = limits
        self._keys = [key] if key else []
        self._session = requests.Session()
        self._session.trust_env = False  # ~/.netrc would replace the key, and proxies read it
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        self._session.headers.update(headers(key) if key else {})
        if "Authorization" in self._session.headers:
            self._session.auth = _unchanged  # else the user info of the URL would replace it
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections))

    def get(self, url: str, params: Mapping[str, str | int]) -> Json:
        return self._call("GET", url, None, params=params)

    def post(self, url: str, body: Json, *, check: Check | None = None) -> Json:
        return self._call("POST", url, check, json=body)

    def mask(self, text: str) -> str:
        """`text` without keys, and without user info and query strings of URLs."""
        return mask(text, self._keys)

    def close(self) -> None:
        self._session.close()

    def _call(self, method: str, url: str, check: Check | None, **arguments: Json) -> Json:
        limits = self._limits
        end = time.monotonic() + limits.deadline_s
        for attempt in range(limits.attempts):
            try:
                once = functools.partial(self._once, method, url, check, end, arguments)
                return _within(end - time.monotonic(), once)
            except HttpFailure as failure:
                pause = limits.backoff_s * 2**attempt * random.uniform(0.5, 1.0)
                pause = max(pause, failure.wait_s)
                last = attempt == limits.attempts - 1
                if last or not failure.retry or time.monotonic() + pause >= end:
                    raise self._described(failure, method, url, attempt + 1) from None
                time.sleep(pause)
        raise AssertionError("limits.attempts is at least 1")

    def _once(
        self, method: str, url: str, check: Check | None, end: float, arguments: Mapping[str, Json]
    ) -> Json:
        """One attempt. Redirects are not followed: they would carry the key to another host."""
        try:
            with self._session.request(
                method,
                url,
                timeout=max(end - time.monotonic(), 0.001),
                stream=True,
                allow_redirects=False,
                proxies=get_environ_proxies(url) if proxies_are_used() else {},
                **arguments,
            ) as response:
                body = self._read(response, end)
        except HttpFailure:
            raise
        except (requests.Timeout, TimeoutError):
            raise HttpFailure("timeout", "no answer in time") from None
        except Exception as error:  # of requests, urllib3 or http.client
            raise HttpFailure("network", f"{type(error).__name__}: {error}") from None
        if response.status_code != 200:
            raise HttpFailure(
                "status",
                f"status {response.status_code}: {body[:READ_CHARS].decode('utf-8', 'replace')}",
                status=response.status_code,
                retry=response.status_code in BUSY,
                wait_s=_seconds(response.headers.get("Retry-After", "")),
            )
        try:
            reply = _cleaned(json.loads(body), [k for k in self._keys if len(k) >= KEY_CHARS])
        except (ValueError, RecursionError) as error:
            raise HttpFailure("body", f"the answer is no JSON ({error})") from None
        if check:
            check(reply)
        return reply

    def _read(self, response: requests.Response, end: float) -> bytes:
        """The body, unzipped in pieces, so that a small zipped one cannot fill the memory."""
        pieces: list[bytes] = []
        size = 0
        while piece := response.raw.read1(65_536, decode_content=True):
            pieces.append(piece)
            size += len(piece)
            if size > self._limits.max_bytes:
                text = f"the answer is larger than {self._limits.max_bytes} bytes"
                raise HttpFailure("body", text, retry=False)
            if time.monotonic() > end:
                raise TimeoutError
        return b"".join(pieces)

    def _described(self, failure: HttpFailure, method: str, url: str, attempts: int) -> HttpFailure:
        """The failure for the caller: one line, with the address and without keys."""
        keys = [*self._keys, *_keys_of(url)]
        text = " ".join(mask(str(failure)[:READ_CHARS], keys).split())[:SHOWN_CHARS]
        tries = f" ({attempts} attempts)" if attempts > 1 else ""
        text = f"{method} {mask(url, keys)}: {text}{tries}"
        return HttpFailure(failure.kind, text, status=failure.status, retry=failure.retry)


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _keys_of(url: str) -> list[str]:
    """Texts in an address that may be keys: its password, and long values and user names."""
    try:
        place = urllib.parse.urlsplit(url)
    except ValueError:
        return []
    user, _, password = place.netloc.rpartition("@")[0].partition(":")
    values = [user, *(value for _, value in urllib.parse.parse_qsl(place.query))]
    return [urllib.parse.unquote(password), *(v for v in values if len(v) >= KEY_CHARS)]


def _cleaned(value: Json, keys: Sequence[str]) -> Json:
    """`value` without `keys` in its texts, and "?" for half characters, which no file can hold."""
    if isinstance(value, str):
        return mask_keys(value.encode("utf-8", "replace").decode(), keys)
    if isinstance(value, list):
        return [_cleaned(item, keys) for item in value]
    if isinstance(value, dict):
        return {name: _cleaned(item, keys) for name, item in value.items()}
    return value


def _within(seconds: float, work: Callable[[], Value]) -> Value:
    """Calls `work` in a thread and abandons the thread after `seconds`.

    A socket's time-out bounds the wait for each byte, not for all of them: a server that sends a
    byte a second would hold a thread for ever. An abandoned thread ends with its connection.
    """
    done: Future[Value] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="http_call").start()
    try:
        return done.result(max(seconds, 0.001))
    except TimeoutError:
        raise HttpFailure("timeout", "no answer in time") from None


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After header, which holds a number or a date; 0 without one."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))  # 0 for NaN
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except Exception:  # the parser raises many kinds, such as OverflowError for a huge year
        return 0.0
