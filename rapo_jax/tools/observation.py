"""What a tool is: a batch of calls in, a batch of observations out, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Observation(NamedTuple):
    """What a tool said: `outcome` is ok, error, timeout, flooded, crashed or empty."""

    text: str
    outcome: str


Tool = Callable[[list[str]], list[Observation]]
"""A tool never raises: whatever goes wrong is an observation with its outcome."""
