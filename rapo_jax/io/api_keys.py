"""API keys: read from the environment, and masked in every text that leaves the program."""

from __future__ import annotations

import base64
import functools
import html
import os
import re
from collections.abc import Iterable

MASK = "***"
KEY_CHARS = 8
"""A prefix of a key of this length or longer is masked too: texts cut keys."""

_USER_INFO = re.compile(r"(\w://)\S*@")
_QUERY = re.compile(
    r"((?:\w://|\burl: /)[^\s\"'<>?#]*[?#])[^\s\"'<>]+|(\S\?)[\w.~%+-]+=[^\s\"'<>]*"
)


def read_api_key(variable: str, *, key: str) -> str:
    """The API key in an environment variable; '' without a variable.

    Raises ValueError, with the config key `key`, if it is not set or is no line of ASCII text.
    """
    if variable and not re.fullmatch(r"[A-Za-z_]\w*", variable):
        raise ValueError(
            f"{key}: expected the name of an environment variable (letters, digits and _), not the "
            "API key; put the key into a variable"
        )
    value = os.environ.get(variable, "").strip() if variable else ""
    if variable and not value:
        raise ValueError(
            f"{key}={variable!r}: this environment variable is empty or not set; put the API key "
            "into it"
        )
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"{key}={variable!r}: the API key in it is no line of ASCII text")
    return value


def mask(text: str, keys: Iterable[str] = ()) -> str:
    """`text` for a message or log: without `keys`, and without user info and queries of URLs."""
    return _QUERY.sub(rf"\1\2{MASK}", _USER_INFO.sub(rf"\1{MASK}@", mask_keys(text, keys)))


def mask_keys(text: str, keys: Iterable[str]) -> str:
    """`text` without `keys`, and without their prefixes of KEY_CHARS or more.

    A key is recognised in plain, escaped (Python, JSON, HTML), URL-quoted and inside base64.
    """
    for key in filter(None, keys):
        for form in _forms(key):
            text = form.cut_out(text)
    return text


class _Form:
    """One encoding of a key: a pattern for each of its characters."""

    def __init__(self, form: str, rest: str = "") -> None:
        spellings = [_spelling(char) for char in form]
        self._start = re.compile("".join(spellings[:KEY_CHARS]))
        self._more = [re.compile(spelling) for spelling in spellings[KEY_CHARS:]]
        self._rest = re.compile(rest)

    def cut_out(self, text: str) -> str:
        pieces, end = [], 0
        while start := self._start.search(text, end):
            pieces += [text[end : start.start()], MASK]
            end = start.end()
            for char in self._more:
                match = char.match(text, end)
                if match is None:
                    break
                end = match.end()
            if rest := self._rest.match(text, end):
                end = rest.end()
        return "".join([*pieces, text[end:]])


def _spelling(char: str) -> str:
    """A pattern of all that encoders make of a character."""
    if char.isalnum() or char in "-_.~":
        return re.escape(char)  # no encoder changes it, and a literal start is searched for fast
    code = f"(?i:{ord(char):02x})"
    ways = [
        r"\\{0,8}" + re.escape(char),
        rf"%(?:25){{0,4}}{code}",
        rf"\\{{1,8}}(?:x|u00){code}",
        rf"&#{ord(char)};",
        re.escape(html.escape(char)),
    ]
    ways += [re.escape(other) for plain, other in (" +", "+-", "/_") if char == plain]
    return f"(?:{'|'.join(ways)})"


@functools.lru_cache(maxsize=64)
def _forms(key: str) -> list[_Form]:
    """The key, and its part of a base64 text in which it begins at each of three offsets."""
    forms = [_Form(key)]
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + key.encode()).decode()
        part = encoded[-(-offset * 8 // 6) : (offset + len(key.encode())) * 8 // 6]
        if len(part) >= min(len(key), KEY_CHARS):
            forms.append(_Form(part, r"[\w+/=-]*"))
    return forms
