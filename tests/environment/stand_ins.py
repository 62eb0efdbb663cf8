"""Tools without a network, and the room of their texts as the small rollout has it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rapo_jax.tools.observation import Observation

ROOM, TRACE_ROOM, STEP = 12, 20, 200


class Immediate(NamedTuple):
    """A tool that gets all calls at once."""

    tool: Callable[[list[str]], list[Observation]]
    immediate: bool = True

    def __call__(self, calls):
        return self.tool(calls)


def echo(calls):
    return [Observation(f"heard {call}" if call else "nothing", "ok") for call in calls]


class Gate:
    """A tool that answers calls of "s" once it is open."""

    def __init__(self):
        self.opened = threading.Event()

    def __call__(self, calls):
        if "s" in calls:
            assert self.opened.wait(timeout=60)
        return echo(calls)


class Acted(NamedTuple):
    """What `act` gave each slot: the observations as texts."""

    ready: list[bool]
    healthy: list[bool]
    texts: list[str]
    query_UE: np.ndarray
