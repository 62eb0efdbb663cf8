"""Token tapes as text: segments, responses, step traces, and the lines of trajectories.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocol import Segment
from rapo_jax.text.tokens import Tokens
from rapo_jax.types import Source, Status, Trajectory

SOURCES = tuple(Source)
"""By their number."""


class Piece(NamedTuple):
    """Positions [start, stop) of one row that one source wrote in one step.

    The first of POLICY begins with what the chat template opened of the response, if anything:
    tokens of the prompt by `source_BT`.
    """

    source: Source
    step: int
    start: int
    stop: int


def pieces(tokens: Tokens, trajectory: Trajectory, b: int) -> Iterator[Piece]:
    """The pieces of row b, prompt first."""
    length = int(trajectory.length_B[b])
    source_T, step_T = trajectory.source_BT[b, :length].copy(), trajectory.step_BT[b, :length]
    prompt = int((source_T == Source.PROMPT).sum())
    _, opened = tokens.opened(trajectory.token_BT[b, :prompt])
    source_T[prompt - opened : prompt] = Source.POLICY
    if not length:
        return
    pair_T = step_T.astype(np.int64) * len(SOURCES) + source_T
    starts = np.concatenate([[0], np.flatnonzero(pair_T[1:] != pair_T[:-1]) + 1])
    places = [*starts.tolist(), length]
    for pair, start, stop in zip(pair_T[starts].tolist(), places, places[1:], strict=False):
        step, source = divmod(pair, len(SOURCES))
        yield Piece(SOURCES[source], step, start, stop)


def segments(tokens: Tokens, trajectory: Trajectory, b: int) -> list[Segment]:
    """The tape of row b as text, without the prompt, for logs: they show the end-of-sequence.

    What is scored or stored is `response_segments`.
    """
    return _as_text(tokens, trajectory, b, _response_pieces(tokens, trajectory, b))


def response_segments(tokens: Tokens, trajectory: Trajectory, b: int) -> list[Segment]:
    """The response of row b as text: its segments without a token that ended it.

    An end-of-sequence, or the end of a turn in a chat template, is no part of what is said.
    """
    found = _response_pieces(tokens, trajectory, b)
    if found and found[-1].source == Source.POLICY:
        last = found[-1]
        if _ends_response(tokens, int(trajectory.token_BT[b, last.stop - 1])):
            shorter = last._replace(stop=last.stop - 1)
            found[-1:] = [shorter] if shorter.stop > shorter.start else []
    return _as_text(tokens, trajectory, b, found)


def response_text(tokens: Tokens, trajectory: Trajectory, b: int) -> str:
    """The text of row b that is scored: its response without retrieved traces."""
    return text_without_retrieved(response_segments(tokens, trajectory, b))


def _ends_response(tokens: Tokens, token: int) -> bool:
    protocol = tokens.protocol
    ends_turn = protocol.turns and tokens.decode([token]) in protocol.stops
    return token in tokens.eos_ids or ends_turn


def _response_pieces(tokens: Tokens, trajectory: Trajectory, b: int) -> list[Piece]:
    return [p for p in pieces(tokens, trajectory, b) if p.source != Source.PROMPT]


def _as_text(
    tokens: Tokens, trajectory: Trajectory, b: int, row_pieces: Sequence[Piece]
) -> list[Segment]:
    ids = trajectory.token_BT[b].tolist()
    return [Segment(p.source, p.step, tokens.decode(ids[p.start : p.stop])) for p in row_pieces]


def text_without_retrieved(row_segments: Sequence[Segment]) -> str:
    """The segments' text without retrieved traces."""
    return "".join(s.text for s in row_segments if s.source != Source.RETRIEVED)


def steps_without_retrieved(row_segments: Sequence[Segment]) -> list[str]:
    """Step traces of a response: each policy step with the observation it caused."""
    steps: dict[int, str] = {}
    for segment in row_segments:
        if segment.source != Source.RETRIEVED:
            steps[segment.step] = steps.get(segment.step, "") + segment.text
    return list(steps.values())


def trajectory_lines(
    tokens: Tokens,
    trajectory: Trajectory,
    questions: Sequence[Question],
    *,
    labels: Mapping[str, object],
    hybrid_B: np.ndarray,
    off_policy_B: np.ndarray,
    has_entropy_B: np.ndarray,
    reward_B: np.ndarray,
    advantage_B: np.ndarray,
    retrieval_B: np.ndarray,
    z_BS: np.ndarray,
) -> str:
    """A line of JSON for each row: `labels`, its scores, its segments.

    `off_policy_B`: the policy did not sample the row in this step; `has_entropy_B`: it did at some
    time, and its entropies are on the tape.
    """
    lines = ""
    for b, question in enumerate(questions):
        parts = []
        for piece in pieces(tokens, trajectory, b):
            ids = trajectory.token_BT[b, piece.start : piece.stop]
            entropy = trajectory.entropy_BT[b, piece.start : piece.stop]
            sampled = trajectory.source_BT[b, piece.start : piece.stop] == Source.POLICY
            sampled &= has_entropy_B[b]
            policy = piece.source == Source.POLICY and has_entropy_B[b]
            retrieved = piece.source == Source.RETRIEVED
            parts.append(
                {
                    "source": piece.source.name,
                    "step": piece.step,
                    "text": tokens.decode(ids),
                    "entropy": float(entropy[sampled].mean()) if sampled.any() else None,
                    "z": float(z_BS[b, piece.step]) if retrieved else None,
                    "tokens": [tokens.decode([i]) for i in ids],
                    "token_entropy": [round(float(x), 4) for x in entropy] if policy else None,
                }
            )
        row = {
            **labels,
            "question_id": question.id,
            "question": question.question,
            "answers": list(question.answers),
            "row": b,
            "hybrid": bool(hybrid_B[b]),
            "off_policy": bool(off_policy_B[b]),
            "status": Status(int(trajectory.status_B[b])).name,
            "reward": float(reward_B[b]),
            "advantage": float(advantage_B[b]),
            "retrieval_reward": float(retrieval_B[b]),
            "segments": parts,
        }
        lines += json.dumps(row) + "\n"
    return lines
