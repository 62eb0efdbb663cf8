"""A file or service that a run needs, and the list of them that launch/prepare.py prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Need(NamedTuple):
    """A file or service that a run needs."""

    key: str
    what: str
    missing: str
    """Why the run would refuse it, or '' if it is there."""
    how: str = ""
    """How to get it, where the reason does not say so."""


def need(key: str, what: str, check: Callable[[], object], how: str = "") -> Need:
    """A need by the check that the run itself makes; `how` to get what is missing."""
    try:
        check()
    except (ValueError, FileNotFoundError) as error:
        return Need(key, what, str(error).removeprefix(f"{key}={what!r}: "), how)
    return Need(key, what, "")


def report(needed: Sequence[Need]) -> int:
    """Prints a line for each need; returns the number of missing ones."""
    missing = [need for need in needed if need.missing]
    for need in needed:
        print(f"{'missing' if need.missing else 'ok':8}{need.key}: {need.what}")
        if need.missing:
            print(f"        {need.missing}")
        if need.how:
            print(f"        -> {need.how}")
    if missing:
        print(f"{len(missing)} of {len(needed)} missing")
    else:
        print(f"all {len(needed)} are there: the run can start")
    return len(missing)
