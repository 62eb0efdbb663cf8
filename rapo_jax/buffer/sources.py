"""Reads trajectories and step traces that were made elsewhere, to fill a Step-Trace Buffer.

Files are JSON lines. A line is one of four records, distinguished by its keys:

    {"key", "value", "reward"}     one step trace, as the official buffer stores it
    {"question", "response", …}    a trajectory as text with our tags, the prompt left out
    {"question", "steps", …}       a trajectory as a list of step traces
    {"messages", …}                a trajectory as chat messages with tool calls

A trajectory also needs "reward", or "answers" to compute it from, unless its question is one of
those to train on. It may hold "question_id" (else the question's text names it), "id" (unique in
its file) and "origin" (else the file's name).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rapo_jax.buffer.keys import key_text
from rapo_jax.buffer.messages import tagged_text
from rapo_jax.buffer.trajectories import AgentTrajectory, StepTrace
from rapo_jax.io.jsonl import LineReport, number_of, read_jsonl, text_of, texts_of
from rapo_jax.tasks.schema import Question, Score
from rapo_jax.text.protocol import opened_thought, split_steps, tags

_TOKEN_NAME = re.compile(r"[^|>]*")
_TURN_TOKENS = ("<|im_start|>", "<|start_header_id|>")


@dataclass
class Imported:
    """The contents of files: whole trajectories, single step traces, and a report for each file."""

    trajectories: list[AgentTrajectory] = field(default_factory=list)
    step_traces: list[StepTrace] = field(default_factory=list)
    reports: list[LineReport] = field(default_factory=list)

    def usable_step_traces(self, *, unit: str, include_answers: bool) -> list[StepTrace]:
        """The single step traces that a buffer of these settings takes."""
        if self.step_traces and unit != "step":
            raise ValueError(
                f"retrieval.unit={unit!r}: buffer.files hold {len(self.step_traces)} single step "
                "traces {key, value, reward}, which are no trajectories; use retrieval.unit='step'"
            )
        return [row for row in self.step_traces if include_answers or "</answer>" not in row.value]

    def info(self) -> dict[str, object]:
        """The manifest's entries about the files: counts, and the malformed lines by number."""
        files = [{"name": Path(report.path).name, **report.counts()} for report in self.reports]
        return {"files": files, "malformed": sum(report.malformed for report in self.reports)}


def read_sources(
    files: Sequence[str | Path],
    *,
    malformed: str,
    questions: Sequence[Question],
    score: Score,
    mask: str,
    max_chars: int,
    user_tools: tuple[str, ...] = (),
    most_records: int = 0,
) -> Imported:
    """Reads every file, in order, of each at most `most_records`, or all with 0.

    A trajectory of one of `questions` gets that question's id.

    `mask` and `max_chars` make the keys of official records, which are single step traces. There
    question and history are one text; it is split at the first <think> and goes through `key_text`
    like all other keys, else no query could match it.

    Raises:
        ValueError: a file is missing, damaged or without any usable line, or a line is malformed
            and `malformed` is 'fail'.
    """
    known = {question.question.strip(): question for question in questions}
    key_of = functools.partial(key_text, mask=mask, max_chars=max_chars)
    imported = Imported()
    for path in files:
        report = LineReport(str(path))
        parse = _Parser(f"file:{Path(path).name}", known, score, key_of, user_tools)
        records = read_jsonl(
            path, parse, malformed=malformed, key="buffer.malformed", report=report
        )
        for record in itertools.islice(records, most_records or None):
            if isinstance(record, AgentTrajectory):
                imported.trajectories.append(record)
            else:
                imported.step_traces.append(record)
        imported.reports.append(report)
    return imported


@dataclass
class _Parser:
    """Parses the lines of one file; refuses duplicates of earlier lines."""

    _origin: str
    _known: Mapping[str, Question]
    _score: Score
    _key_text: Callable[[str, str], str]
    _user_tools: tuple[str, ...]
    _ids: set[str | int] = field(default_factory=set)
    _contents: dict[bytes, object] = field(default_factory=dict)
    """Digest -> the id of the record, None without one."""

    def __call__(self, record: Mapping[str, object]) -> AgentTrajectory | StepTrace:
        parsed = self._step(record) if "key" in record else self._trajectory(record)
        self._refuse_duplicates(record, parsed)
        return parsed

    def _step(self, record: Mapping[str, object]) -> StepTrace:
        """An official record; the number of results in its key is the step."""
        key, value = text_of(record, "key"), _without_end_tokens(text_of(record, "value"))
        if not value.strip():
            raise ValueError("value holds no step")
        start = key.find("<think>")
        question, history = (key, "") if start < 0 else (key[:start], key[start:])
        question = question.rstrip("\n")
        return StepTrace(
            key=self._key_text(question, history),
            value=opened_thought(value),
            reward=number_of(record, "reward"),
            question_id=self._question_id(record, question),
            step=history.count("</result>"),
            origin=self._origin_of(record),
        )

    def _trajectory(self, record: Mapping[str, object]) -> AgentTrajectory:
        question, steps = _read_trajectory(record, self._user_tools)
        return AgentTrajectory(
            question_id=self._question_id(record, question),
            question=question,
            steps=steps,
            reward=self._reward(record, question, "".join(steps)),
            origin=self._origin_of(record),
        )

    def _reward(self, record: Mapping[str, object], question: str, response: str) -> float:
        if "reward" in record:
            return number_of(record, "reward")
        name = next((name for name in ("answers", "answer") if name in record), "")
        if name:
            return self._score(response, texts_of(record, name))
        if question.strip() in self._known:
            return self._score(response, self._known[question.strip()].answers)
        raise ValueError("neither reward nor answers, and the question is none to train on here")

    def _question_id(self, record: Mapping[str, object], question: str) -> str:
        if "question_id" in record:
            return text_of(record, "question_id")
        if question.strip() in self._known:
            return self._known[question.strip()].id
        return f"text:{hashlib.sha256(question.strip().encode()).hexdigest()[:16]}"

    def _origin_of(self, record: Mapping[str, object]) -> str:
        return text_of(record, "origin") if "origin" in record else self._origin

    def _refuse_duplicates(
        self, record: Mapping[str, object], parsed: AgentTrajectory | StepTrace
    ) -> None:
        if "id" in record:
            name = record["id"]
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise ValueError("id is no text and no whole number")
            if name in self._ids:
                raise ValueError(f"duplicate id {name!r}")
            self._ids.add(name)
        content = hashlib.sha256(repr(tuple(parsed)).encode("utf-8", "surrogatepass")).digest()
        if content in self._contents:
            first, name = self._contents[content], record.get("id")
            if first == name:
                raise ValueError("the same record as on an earlier line")
            raise ValueError(f"the same trajectory as on an earlier line, whose id is {first!r}")
        self._contents[content] = record.get("id")


def _read_trajectory(
    record: Mapping[str, object], user_tools: tuple[str, ...]
) -> tuple[str, list[str]]:
    """(question, step traces) of a trajectory in any of its three forms."""
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list):
            raise ValueError("messages is no list")
        asked, response = tagged_text(messages, user_tools)
        question = text_of(record, "question") if "question" in record else asked
        if not question.strip():
            raise ValueError("messages: the question is blank")
        return question, _steps(response, "messages", user_tools)
    if "steps" in record:
        *steps, last = texts_of(record, "steps")
        steps += filter(str.strip, [_without_end_tokens(last)])
        if not steps:
            raise ValueError("steps holds no step")
        _check_tags("".join(steps), "steps", user_tools)
        return text_of(record, "question"), list(map(opened_thought, steps))
    if "response" in record:
        return text_of(record, "question"), _steps(
            text_of(record, "response"), "response", user_tools
        )
    raise ValueError(
        "none of key, response, steps and messages is there "
        f"(there are {', '.join(sorted(record)) or 'no keys'})"
    )


def _without_end_tokens(text: str) -> str:
    """The text without the chat tokens <|...|> at its end and the white space around them."""
    end, left = len(text), len(text.rstrip())
    while text.endswith("|>", 0, left):
        start = text.rfind("<|", 0, left - 2)
        if start < 0 or not _TOKEN_NAME.fullmatch(text, start + 2, left - 2):
            break
        while start and text[start - 1].isspace():
            start -= 1
        end = left = start
    return text[:end]


def _steps(response: str, name: str, user_tools: tuple[str, ...]) -> list[str]:
    """Step traces of a tagged text, without the tokens that end a turn."""
    response = _without_end_tokens(response)
    _check_tags(response, name, user_tools)
    steps = list(map(opened_thought, split_steps(response, user_tools)))
    if not any(step.strip() for step in steps):
        raise ValueError(f"{name} holds no step")
    return steps


def _check_tags(text: str, name: str, user_tools: tuple[str, ...]) -> None:
    if any(token in text for token in _TURN_TOKENS):
        raise ValueError(f"{name} holds the tokens of several turns; give the assistant's text")
    if not any(tag in text for tag in tags(user_tools)):
        raise ValueError(f"{name} holds none of the protocol's tags, such as <think>")
