"""The tokens that the environment writes: observations and retrieved traces, cut to their room."""

from __future__ import annotations

from rapo_jax.text.protocol import render_retrieved
from rapo_jax.text.tokens import Tokens


def observation_ids(tokens: Tokens, observation: str, *, room: int) -> list[int]:
    """Tokens of an observation with its tags, cut so that all of it fits."""
    protocol = tokens.protocol
    return _fit(tokens, protocol.render(observation), protocol.after, room)


def retrieved_ids(tokens: Tokens, trace: str, *, room: int) -> list[int]:
    """Tokens of `<retrieve>...</retrieve>`, the end of the trace cut so that all of it fits."""
    return _fit(tokens, render_retrieved(trace), "</retrieve>", room)


def _fit(tokens: Tokens, text: str, ending: str, room: int) -> list[int]:
    ids = tokens.encode_protocol(text)
    if len(ids) <= room:
        return ids
    closing = tokens.encode_protocol(ending)
    return ids[: room - len(closing)] + closing
