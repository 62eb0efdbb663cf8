"""The interface of a tool: a batch of calls in, a batch of observations out, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Observation(NamedTuple):
    """The result of a call.

    `outcome` is ok, error, timeout, flooded (output longer than `tools.output_chars`), crashed
    (process died) or empty (empty call, or nothing found).
    """

    text: str
    outcome: str


Tool = Callable[[list[str]], list[Observation]]
"""A tool never raises: every failure is an observation with its outcome. What one raises all the
same, as the Python tool does whose interpreter cannot be started, ends the run after the rollout.

Concurrent threads call it, each with one call. A tool with a true attribute `immediate` gets all
calls there are at once, and the rows wait for it: one that answers in less time than a thread takes
to start, or that gains more from a batch, such as a search in an index of this process.
"""
