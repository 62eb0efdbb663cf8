"""The protocol of a trajectory: the system prompt, the tags, parsing and rendering of a step.

A policy step ends when it closes one of `STOPS` or emits end-of-sequence. After a call the world
says `<result>...</result>`; a retrieved step trace stands between `<retrieve>` and `</retrieve>`.
Every function is total: it returns something sensible for any text and never raises.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from rapo_jax.types import Source

TAG_NAMES = ("think", "search", "python", "result", "retrieve", "answer")
TAGS = tuple(f"<{slash}{name}>" for name in TAG_NAMES for slash in ("", "/"))
STEP_KINDS = ("search", "python", "answer")
STOPS = tuple(f"</{kind}>" for kind in STEP_KINDS)

SYSTEM_PROMPT = (
    "You are a helpful assistant who solves the user's question step by step with two tools: a "
    "Wikipedia search and a Python interpreter.\n"
    "First reason inside <think> and </think>. To look a fact up, write one query inside <search> "
    "and </search>; to compute, write one program inside <python> and </python> and print what "
    "you need. What the tool says comes back inside <result> and </result>; read it and reason "
    "on. You may call tools several times.\n"
    "Sometimes a piece of another solver's work is given inside <retrieve> and </retrieve>; use "
    "it if helpful.\n"
    "When you are sure, write the answer inside <answer> and </answer>, with the exact final "
    "answer in \\boxed{}."
)

_TAG = re.compile(rf"<(?=/?(?:{'|'.join(TAG_NAMES)})>)|<(?=\|)")
_RETRIEVE_TAG = re.compile(r"<(?=/?retrieve>)|<(?=\|)")
_RETRIEVED = re.compile(r"<retrieve>(?:(?!<retrieve>).)*?</retrieve>", re.DOTALL)
_CALL_AND_RESULT = re.compile(r"</(?:search|python)>[^<]*<result>.*?</result>\s*", re.DOTALL)


class Step(NamedTuple):
    """What the policy did in one step: `kind` is search, python, answer or stop (nothing closed).

    `content` is the call or the answer; it is empty for an empty call and for a tag that was
    closed but never opened.
    """

    kind: str
    content: str


class Segment(NamedTuple):
    """A piece of a trajectory's text that one source wrote; `step` as in `Trajectory.step_BT`."""

    source: Source
    step: int
    text: str


def parse_step(text: str) -> Step:
    """The last call or answer that the policy itself closed in `text`, the policy's own step.

    The kind is that of the last closing tag in `STOPS`, so it always agrees with the boundary
    automaton that ended the step. An indented program is dedented as a whole.
    """
    end, kind = max((text.rfind(stop), kind) for stop, kind in zip(STOPS, STEP_KINDS, strict=True))
    if end < 0:
        return Step("stop", "")
    _, opened, content = text[:end].rpartition(f"<{kind}>")
    if not opened:
        return Step(kind, "")
    return Step(kind, (textwrap.dedent(content) if kind == "python" else content).strip())


def neutralise(text: str) -> str:
    """Foreign text in which no tool tag and no chat token `<|...|>` can open or close anything.

    A space after the `<` breaks each of them; all other text stays as it is.
    """
    return _TAG.sub("< ", text)


def render_result(observation: str) -> str:
    """What the world says after a tool call."""
    return f"<result> {neutralise(observation)}</result>"


def render_retrieved(trace: str) -> str:
    """A retrieved step trace with its tags; its own thought, call and observation stay whole."""
    return f"<retrieve>{_RETRIEVE_TAG.sub('< ', trace)}</retrieve>"


def without_retrieved(text: str) -> str:
    """The response without its `<retrieve>...</retrieve>` spans: what may be judged and split."""
    return _RETRIEVED.sub("", text)


def split_steps(text: str) -> list[str]:
    """The step traces of a response: thought, call and result each; the last is the answer step.

    Retrieved spans are cut out first; the pieces joined give the rest back.
    """
    text = without_retrieved(text)
    cuts = [0, *(match.end() for match in _CALL_AND_RESULT.finditer(text)), len(text)]
    pieces = (text[start:end] for start, end in zip(cuts, cuts[1:], strict=False))
    return [piece for piece in pieces if piece]
