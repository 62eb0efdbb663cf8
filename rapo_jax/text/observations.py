"""Tokens that the environment writes: observations and traces, truncated to their token limits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rapo_jax.text.protocol import INVALID, Step, render_retrieved
from rapo_jax.text.tokens import Tokens

CACHED_TEXTS = 65_536
"""Tokenized observations and traces that are cached: most texts occur many times."""


class Written(NamedTuple):
    """A text as the environment writes it into a row."""

    token_X: np.ndarray
    """Token ids, int32."""
    text: str


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

        def written(ids: Sequence[int]) -> Written:
            return Written(np.asarray(ids, np.int32), tokens.decode(ids))

        @lru_cache(maxsize=CACHED_TEXTS)
        def observation(*texts: str) -> Written:
            return written(observation_ids(tokens, *texts, room=observation_tokens))

        @lru_cache(maxsize=CACHED_TEXTS)
        def retrieved(trace: str) -> Written:
            return written(retrieved_ids(tokens, trace, room=retrieved_tokens))

        self.retrieved = retrieved
        self._observation = observation
        self._nothing = written([])
        self._corrective = written(corrective_ids(tokens, room=observation_tokens))
        self._in_turns = tokens.protocol.turns

    def reply(self, called: Sequence[tuple[Step, str]]) -> Written:
        """The observations of a step; nothing for a turn without calls: its row ends."""
        if not called:
            return self._nothing
        if all(step.kind == INVALID for step, _ in called) and not self._in_turns:
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
        while len(ids) > room and share > 0:  # escapes make a text longer than its share
            cut = [tokens.decode(tokens.encode(text)[:share]) for text in observations]
            ids = whole_observation_ids(tokens, *cut)
            share = share * 7 // 8
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


def whole_retrieved_ids(tokens: Tokens, trace: str) -> list[int]:
    """Tokens of `<retrieve>...</retrieve>`."""
    return tokens.encode_protocol(render_retrieved(trace))


def retrieved_ids(tokens: Tokens, trace: str, *, room: int) -> list[int]:
    """Tokens of `<retrieve>...</retrieve>`, the trace truncated to at most `room` tokens in all."""
    ids = whole_retrieved_ids(tokens, trace)
    return ids if len(ids) <= room else _cut(ids, tokens.encode_protocol("</retrieve>"), room)


def _cut(ids: list[int], closing: list[int], room: int) -> list[int]:
    return ids[: room - len(closing)] + closing
