"""Tokens that the environment writes: observations and traces, truncated to their token limits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

from rapo_jax.text.protocol import INVALID, Step, render_retrieved
from rapo_jax.text.tokens import Tokens

CACHED_TEXTS = 65_536
"""Tokenized observations and traces that are cached: most texts occur many times."""


class EnvironmentTexts:
    """The tokens of replies and of retrieved traces, each truncated to its token limit.

    Raises:
        ValueError: an observation's tags alone do not fit.
    """

    def __init__(self, tokens: Tokens, observation_tokens: int, retrieved_tokens: int) -> None:
        needed = len(whole_observation_ids(tokens, ""))
        if observation_tokens < needed:
            raise ValueError(
                f"rollout.observation_tokens={observation_tokens}: the tags of an observation of "
                f"{tokens.protocol.name!r} need {needed}; raise it"
            )
        self.observation_tokens, self.retrieved_tokens = observation_tokens, retrieved_tokens
        cached = lru_cache(maxsize=CACHED_TEXTS)
        self.retrieved = cached(partial(retrieved_ids, tokens, room=retrieved_tokens))
        self._observation = cached(partial(observation_ids, tokens, room=observation_tokens))
        self._corrective = corrective_ids(tokens, room=observation_tokens)
        self._in_turns = tokens.protocol.turns

    def reply(self, called: Sequence[tuple[Step, str]]) -> list[int]:
        """Tokens of the observations of a step; none of a turn without calls: its row ends."""
        if not called:
            return []
        if called[0][0].kind == INVALID and not self._in_turns:
            return self._corrective
        return self._observation(*(text for _, text in called))


def whole_observation_ids(tokens: Tokens, *observations: str) -> list[int]:
    """Tokens of the observations of a step with their tags."""
    protocol = tokens.protocol
    if not protocol.turns:
        return tokens.encode_protocol(protocol.render(*observations))
    texts = [part for each in observations for part in (protocol.written(each), protocol.between)]
    return tokens.encode_turns(protocol.before, *texts[:-1], protocol.after)


def observation_ids(tokens: Tokens, *observations: str, room: int) -> list[int]:
    """Tokens of the observations of a step with their tags, truncated to `room` tokens.

    Of several, each is truncated to an equal share.
    """
    ids = whole_observation_ids(tokens, *observations)
    if len(ids) <= room:
        return ids
    if len(observations) > 1:
        share = (room - len(whole_observation_ids(tokens, *[""] * len(observations)))) // len(
            observations
        )
        cut = [tokens.decode(tokens.encode(text)[: max(share, 0)]) for text in observations]
        ids = whole_observation_ids(tokens, *cut)
        if len(ids) <= room:
            return ids
    after = tokens.protocol.after
    closing = tokens.encode_turns(after) if tokens.protocol.turns else tokens.encode_protocol(after)
    return _cut(ids, closing, room)


def corrective_ids(tokens: Tokens, *, room: int) -> list[int]:
    """Tokens of the reply to a step without an action, truncated to `room` tokens."""
    protocol = tokens.protocol
    if protocol.turns:
        return observation_ids(tokens, protocol.corrective, room=room)
    return tokens.encode_protocol(protocol.corrective)[:room]


def retrieved_ids(tokens: Tokens, trace: str, *, room: int) -> list[int]:
    """Tokens of `<retrieve>...</retrieve>`, the trace truncated to at most `room` tokens in all."""
    ids = tokens.encode_protocol(render_retrieved(trace))
    return ids if len(ids) <= room else _cut(ids, tokens.encode_protocol("</retrieve>"), room)


def _cut(ids: list[int], closing: list[int], room: int) -> list[int]:
    return ids[: room - len(closing)] + closing
