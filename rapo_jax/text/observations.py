"""The tokens that the environment writes: observations and retrieved traces, cut to their room."""

from __future__ import annotations

from rapo_jax.text.protocol import neutralise, render_retrieved
from rapo_jax.text.tokens import Tokens


def whole_observation_ids(tokens: Tokens, observation: str) -> list[int]:
    """Tokens of an observation with its tags."""
    protocol = tokens.protocol
    if protocol.turns:
        foreign = neutralise(observation, protocol.tags)
        return tokens.encode_turns(protocol.before, foreign, protocol.after)
    return tokens.encode_protocol(protocol.render(observation))


def observation_ids(tokens: Tokens, observation: str, *, room: int) -> list[int]:
    """Tokens of an observation with its tags, cut so that all of it fits."""
    protocol = tokens.protocol
    ids = whole_observation_ids(tokens, observation)
    if len(ids) <= room:
        return ids
    if protocol.turns:
        return _cut(ids, tokens.encode_turns("", "", protocol.after), room)
    return _cut(ids, tokens.encode_protocol(protocol.after), room)


def corrective_ids(tokens: Tokens, *, room: int) -> list[int]:
    """Tokens of the reply to a step without an action, cut to its room."""
    protocol = tokens.protocol
    if protocol.turns:
        return observation_ids(tokens, protocol.corrective, room=room)
    return tokens.encode_protocol(protocol.corrective)[:room]


def retrieved_ids(tokens: Tokens, trace: str, *, room: int) -> list[int]:
    """Tokens of `<retrieve>...</retrieve>`, the end of the trace cut so that all of it fits."""
    ids = tokens.encode_protocol(render_retrieved(trace))
    return ids if len(ids) <= room else _cut(ids, tokens.encode_protocol("</retrieve>"), room)


def _cut(ids: list[int], closing: list[int], room: int) -> list[int]:
    return ids[: room - len(closing)] + closing
