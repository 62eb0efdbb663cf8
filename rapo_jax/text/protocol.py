"""The protocol of a trajectory: the system prompt, the tags, parsing and rendering of a step.

A policy step ends when it closes one of `stops()` or emits end-of-sequence. After a call follows
the observation, `<result>...</result>`; a retrieved step trace is put between `<retrieve>` and
`</retrieve>`. No function raises, whatever the text. `user_tools` are the names of the tags that
call a tool of the user (tools.user_tools), beside those of `CALLS`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rapo_jax.types import Source

TAG_NAMES = ("think", "search", "python", "result", "retrieve", "answer")
CALLS = ("search", "python")
STEP_KINDS = (*CALLS, "answer")
CALL_NOTHING = ("stop", "answer")
"""Kinds of steps that call no tool."""
INVALID = "invalid"
"""Kind of a step that neither calls a tool nor answers, where the environment replies to it."""

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

REST_OF_TOKEN = r"[^<]*(?:<[^<>\w]*)?"
"""What may stand between a call and its result: byte-level tokenizers have tokens such as `>.` and
`></`, and a step ends with the token that closes its tag."""

USER_TOOL_PROMPT = "Another tool: write its input inside <{name}> and </{name}>."
_RETRIEVE_TAG = re.compile(r"<(?=/?retrieve>)|<(?=\|)")
_RESULT_END = re.compile(r"</result>\s*")
_RETRIEVED = re.compile(r"<retrieve>(?:(?!<retrieve>).)*?</retrieve>", re.DOTALL)


def user_tool_names(tools: Iterable[str]) -> tuple[str, ...]:
    """`user_tools` of a run with these tools; one that replaces a built-in tool has its tag."""
    return tuple(name for name in tools if name not in CALLS)


@functools.cache
def tags(user_tools: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every opening and closing tag."""
    return tuple(f"<{slash}{name}>" for name in (*TAG_NAMES, *user_tools) for slash in ("", "/"))


@functools.cache
def stops(user_tools: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The closing tags that end a step of the policy: those of calls and of the answer."""
    return tuple(f"</{kind}>" for kind in (*STEP_KINDS, *user_tools))


STOPS = stops()


def with_tools(system: str, purposes: Mapping[str, str]) -> str:
    """The system prompt with a line for each user tool; `purposes`: name of its tag -> purpose."""
    lines = (f"{USER_TOOL_PROMPT.format(name=name)} {text}" for name, text in purposes.items())
    return "\n".join([system, *map(str.strip, lines)])


class Step(NamedTuple):
    """A step of the policy: `kind` is a call's tag, 'answer', or 'stop' if no tag was closed.

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


def parse_step(text: str, user_tools: tuple[str, ...] = ()) -> Step:
    """The last call or answer that the policy closed in `text`, which holds its tokens alone.

    The kind is that of the last closing tag in `stops`, so it always agrees with the boundary
    automaton that ended the step. An indented program is dedented as a whole.
    """
    end, kind = max((text.rfind(f"</{kind}>"), kind) for kind in (*STEP_KINDS, *user_tools))
    if end < 0:
        return Step("stop", "")
    _, opened, content = text[:end].rpartition(f"<{kind}>")
    if not opened:
        return Step(kind, "")
    return Step(kind, (_dedented(content) if kind == "python" else content).strip())


def _dedented(program: str) -> str:
    """The program without the indentation that all its lines have, blank ones aside."""
    lines = program.split("\n")
    margin = os.path.commonprefix(
        [line[: len(line) - len(line.lstrip(" \t"))] for line in lines if line.strip()]
    )
    return "\n".join(line.removeprefix(margin) for line in lines)


@functools.cache
def _tag(user_tools: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"<(?=/?(?:{'|'.join((*TAG_NAMES, *user_tools))})>)|<(?=\|)")


@functools.cache
def _call_and_result(user_tools: tuple[str, ...]) -> re.Pattern[str]:
    """The end of a call and the beginning of its result."""
    called = "|".join((*CALLS, *user_tools))
    return re.compile(rf"</(?:{called})>{REST_OF_TOKEN}<result>")


def opened_thought(text: str) -> str:
    """A step with the `<think>` that its model's chat template kept, where it only closes one."""
    first = re.search("</?think>", text)
    return f"<think>{text}" if first and first[0] == "</think>" else text


def neutralise(text: str, user_tools: tuple[str, ...] = ()) -> str:
    """Foreign text with a space after the `<` of every tag and chat token `<|...|>`.

    None of them can open or close anything then; all other text stays as it is.
    """
    return _tag(user_tools).sub("< ", text)


def render_result(observation: str, user_tools: tuple[str, ...] = ()) -> str:
    """A tool's observation with its tags."""
    return f"<result> {neutralise(observation, user_tools)}</result>"


def render_retrieved(trace: str) -> str:
    """A retrieved step trace with its tags; the tags inside it stay, except `<retrieve>`."""
    return f"<retrieve>{_RETRIEVE_TAG.sub('< ', trace)}</retrieve>"


def without_retrieved(text: str) -> str:
    """The response without its `<retrieve>...</retrieve>` spans: what is scored and split."""
    return _RETRIEVED.sub("", text)


def split_steps(text: str, user_tools: tuple[str, ...] = ()) -> list[str]:
    """The step traces of a response: thought, call and result each; the last is the answer step.

    Retrieved spans are cut out first; the pieces joined are the remaining text.
    """
    text = without_retrieved(text)
    steps, start = [], 0
    while match := _call_and_result(user_tools).search(text, start):
        result = _RESULT_END.search(text, match.end())
        if not result:  # and none of a later call
            break
        steps.append(text[start : result.end()])
        start = result.end()
    return [*steps, text[start:]] if start < len(text) else steps
