"""The automaton that finds a step's end on the bytes of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rapo_jax.text.protocol import STOPS


class Automaton(NamedTuple):
    """Reads a step token by token: `state = next_state_AV[state, token]`, starting from state 0.

    A state >= `first_accept` means that stop number `state - first_accept` has been closed, in the
    middle of a token or at its end; no token leads out of such a state.
    """

    next_state_AV: np.ndarray
    first_accept: int


def boundary_automaton(bytes_V: Sequence[bytes], stops: Sequence[str] = STOPS) -> Automaton:
    """The byte-level automaton of `stops` compiled into a token table of int16.

    Where a token closes several stops, the first one counts.
    """
    next_state_A256, first_accept = _byte_automaton([stop.encode() for stop in stops])
    length_V = np.array([len(token) for token in bytes_V], np.int64)
    all_bytes = np.frombuffer(b"".join(bytes_V), np.uint8)
    start_V = np.concatenate([[0], np.cumsum(length_V)[:-1]])
    by_length_V = np.argsort(-length_V, kind="stable")
    states = np.arange(len(next_state_A256), dtype=np.int16)
    state_VA = np.tile(states, (len(bytes_V), 1))
    for position in range(int(length_V.max(initial=0))):
        # Longest first: the tokens that still have a byte here are a prefix of the order.
        count = int(np.searchsorted(-length_V[by_length_V], -position))
        longer = by_length_V[:count]
        byte = all_bytes[start_V[longer] + position]
        state_VA[longer] = next_state_A256[state_VA[longer], byte[:, None]]
    return Automaton(np.ascontiguousarray(state_VA.T), first_accept)


def _byte_automaton(stops: Sequence[bytes]) -> tuple[np.ndarray, int]:
    """Aho-Corasick over bytes: a state is the longest suffix of the input that begins a stop."""
    begun = {b"", *(stop[:n] for stop in stops for n in range(len(stop)))}
    prefixes = sorted(begun, key=lambda prefix: (len(prefix), prefix))  # in every process alike
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    first_accept = len(prefixes)
    states = np.arange(first_accept + len(stops), dtype=np.int16)
    next_state_A256 = np.tile(states[:, None], (1, 256))
    next_state_A256[:first_accept] = number[b""]  # where a byte of no stop leads
    for prefix, i in number.items():
        for byte in set(b"".join(stops)):
            read = prefix + bytes([byte])
            closed = [k for k, stop in enumerate(stops) if read.endswith(stop)]
            suffix = next(read[n:] for n in range(len(read) + 1) if read[n:] in number)
            next_state_A256[i, byte] = first_accept + closed[0] if closed else number[suffix]
    return next_state_A256, first_accept
