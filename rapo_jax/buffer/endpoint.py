"""A chat endpoint as an off-policy agent: any OpenAI-compatible server, within a spending cap.

The key comes from an environment variable and is sent in a header only. `conversations.py` samples
whole trajectories.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from rapo_jax.buffer.messages import answered
from rapo_jax.config import EndpointSettings
from rapo_jax.io.api_keys import read_api_key
from rapo_jax.io.chat import HOPELESS, MAX_REPLY_BYTES, ChatReply, read_reply, with_extra
from rapo_jax.io.files import Json
from rapo_jax.io.http import HttpFailure, JsonClient, Limits
from rapo_jax.io.jsonl import append_lines
from rapo_jax.text.protocol import CALLS, STEP_KINDS, neutralise, opened_thought, stops, tags

MAX_STOPS = 4
"""More stop sequences are refused by OpenAI's endpoint."""
CHARS_PER_TOKEN = 3
"""To estimate what a call reads; estimates are rather high for English."""

_TORN = re.compile(r"\[?\d*(, ?-?\d*)?")
"""The beginning of a line of the usage log."""
_log = logging.getLogger(__name__)

ChatMessage = dict[str, str]


class Spent(Exception):
    """The spending cap is reached; the message names it."""


class Budget:
    """Calls and tokens spent on an endpoint over all builds of a buffer, recorded in `path`.

    A call is recorded before it is made, with an estimate of its tokens that its answer corrects:
    the running calls of a killed build count as spent.
    """

    def __init__(self, path: Path, *, max_calls: int, max_tokens: int) -> None:
        self._path, self._max_calls, self._max_tokens = path, max_calls, max_tokens
        self._lock = threading.Lock()
        self.calls = self.tokens = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        for line in lines:
            if _TORN.fullmatch(line):  # by a kill, before its call was made
                continue
            try:
                calls, tokens = map(int, json.loads(line))
            except (ValueError, TypeError):
                raise ValueError(f"{path}: damaged; it records the spending, repair it") from None
            self.calls, self.tokens = self.calls + calls, self.tokens + tokens

    def take(self, tokens: int, *, calls: int = 1) -> None:
        """Reserves calls of about `tokens` tokens.

        Raises:
            Spent: that exceeds a cap.
            ValueError: it cannot be recorded, as on a full disk; the call must not be made.
        """
        with self._lock:
            for name, used, cap in (
                ("calls", self.calls + calls, self._max_calls),
                ("tokens", self.tokens + tokens, self._max_tokens),
            ):
                if cap and used > cap:
                    spent = {"calls": self.calls, "tokens": self.tokens}[name]
                    raise Spent(f"buffer.endpoint.max_{name}_total={cap}: {spent} are spent")
            self._write(calls, tokens)

    def correct(self, tokens: int) -> None:
        """Adds the tokens that a call took beyond its estimate; never fails, it is paid for."""
        with self._lock:
            try:
                self._write(0, tokens)
            except ValueError as error:
                _log.warning("%s; its estimates stay uncorrected", error)

    def _write(self, calls: int, tokens: int) -> None:
        append_lines(self._path, json.dumps([calls, tokens]) + "\n")
        self.calls, self.tokens = self.calls + calls, self.tokens + tokens


class Endpoint:
    """Answers of a chat endpoint, cut where a step ends; may be called from any thread.

    Raises:
        ValueError: the environment variable of the key is empty.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        budget: Budget,
        *,
        user_tools: tuple[str, ...],
        attempts: int = 4,
        backoff_s: float = 1.0,
    ) -> None:
        key = read_api_key(settings.key_variable, key="buffer.endpoint.key_variable")
        self._settings, self._budget, self._user_tools = settings, budget, user_tools
        self._url = f"{settings.url.rstrip('/')}/chat/completions"
        self._client = JsonClient(
            Limits(settings.deadline_s, attempts, backoff_s, MAX_REPLY_BYTES),
            key=key,
            connections=settings.concurrency,
        )

    def steps(self, messages: Sequence[ChatMessage]) -> list[str]:
        """The model's next step, and further calls that follow it in the same message.

        Raises:
            Spent: the spending cap is reached.
            HttpFailure: the call failed in all its attempts.
            ValueError: the endpoint refuses all calls.
        """
        s = self._settings
        read = sum(len(message["content"]) for message in messages) // CHARS_PER_TOKEN
        estimate = read + s.step_tokens
        sent = json.dumps(list(messages), ensure_ascii=False).encode("utf-8", "replace")
        most = len(sent) + s.step_tokens  # a token is a byte or more
        self._budget.take(estimate)
        fields: dict[str, Json] = {
            "model": s.model,
            "messages": list(messages),
            "temperature": s.temperature,
            "max_tokens": s.step_tokens,
            "stop": list(stops(self._user_tools)[:MAX_STOPS]),
        }

        def used(reply: Json, text: str) -> int:
            count = _tokens_of(reply)
            return read + len(text) // CHARS_PER_TOKEN if count is None else min(count, most)

        def check(reply: Json) -> None:
            try:
                read_reply(reply)
            except HttpFailure as failure:
                if failure.kind != "status" or _tokens_of(reply):  # it is paid for, and the
                    self._budget.take(used(reply, ""), calls=0)  # estimate reserves the next one
                raise

        try:
            reply = self._client.post(self._url, with_extra(fields, s.extra_body), check=check)
        except HttpFailure as failure:
            if failure.kind in ("status", "empty", "refused"):  # others may have been served
                self._budget.correct(-estimate)
            if failure.status in HOPELESS:
                raise ValueError(f"buffer.endpoint.model={s.model!r}: {failure}") from None
            raise
        answer = read_reply(reply)
        text = self._with_thought(answer)
        self._budget.correct(used(reply, text) - estimate)
        return whole_steps(text, ended=answer.ended, user_tools=self._user_tools)

    def close(self) -> None:
        self._client.close()

    def _with_thought(self, answer: ChatReply) -> str:
        if not answer.thought or "<think>" in answer.text:
            return answer.text
        return f"<think>{neutralise(answer.thought, self._user_tools)}</think>{answer.text}"


def whole_steps(text: str, *, ended: bool, user_tools: tuple[str, ...]) -> list[str]:
    """`whole_step`, and the calls that follow its call with nothing but space between them.

    Anything else behind a call, such as a result that the model made up, is cut. A thought that is
    only closed is opened, and plain text behind a thought is the answer.
    """
    opening = tuple(f"<{name}>" for name in (*CALLS, *user_tools))
    closing = tuple(f"</{name}>" for name in (*CALLS, *user_tools))
    text = opened_thought(text.replace("<|", "< |"))
    steps = [whole_step(text, ended=ended, user_tools=user_tools)]
    while steps[-1].endswith(closing):
        text = text.partition(steps[-1])[2].lstrip()
        step = whole_step(text, ended=ended, user_tools=user_tools)
        if not text.startswith(opening) or not step.endswith(closing):
            break
        steps.append(step)
    last = steps[-1]
    return [*steps[:-1], answered(last, user_tools)] if ended else steps


def whole_step(text: str, *, ended: bool, user_tools: tuple[str, ...]) -> str:
    """A model's step, ending as the policy's do: with its first closing tag of a call or answer.

    Text after that tag is cut. Most endpoints leave the stop sequence out: where a text `ended` in
    an open call or answer, the closing tag is added. Chat control tokens are broken up.
    """
    text = text.replace("<|", "< |")
    ends = [place + len(tag) for tag in stops(user_tools) if (place := text.find(tag)) >= 0]
    if ends:
        return text[: min(ends)]
    place, kind = max((text.rfind(f"<{kind}>"), kind) for kind in (*STEP_KINDS, *user_tools))
    inside = text[place + len(kind) + 2 :]
    closes = ended and place >= 0 and not any(tag in inside for tag in tags(user_tools))
    return f"{text}</{kind}>" if closes else text


def _tokens_of(reply: object) -> int | None:
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    total = usage.get("total_tokens") if isinstance(usage, Mapping) else None
    is_count = isinstance(total, int) and not isinstance(total, bool) and total >= 0
    return total if is_count else None
