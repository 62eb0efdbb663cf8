"""Tells a refused value from a failure of the machine by the text of an error."""

from __future__ import annotations

import re

FAILURES = {
    r"RESOURCE_EXHAUSTED: .*No space left|\[Errno 28\]": "free space on its disk",
    r"UNKNOWN: Gloo|.*Connection closed by peer": "another process has ended, and its log says why",
    r"(?:UNKNOWN|INTERNAL|UNAVAILABLE|RESOURCE_EXHAUSTED|DATA_LOSS|ABORTED|DEADLINE_EXCEEDED): "
    r"|\[Errno (?!(?:1|2|13)\])": "",
}
"""Beginnings of the errors of libraries that come as ValueError and refuse no value -> remedy."""


def end_of(error: str) -> tuple[str, int]:
    """What is added to an error, and the exit status: 2 where a value is refused, else 1."""
    for beginning, remedy in FAILURES.items():
        if re.match(beginning, error):
            return f"; {remedy}, then run the same command again" if remedy else "", 1
    return "", 2
