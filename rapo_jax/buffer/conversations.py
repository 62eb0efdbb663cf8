"""Trajectories of a chat endpoint through the real tools, many at a time.

A trajectory is a conversation: the system prompt, the question, and then in turn a step of the
model and the observation that its call caused, as a message of the user. That needs nothing of an
endpoint but chat.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from rapo_jax.buffer.agents import run_agent
from rapo_jax.buffer.endpoint import Endpoint, Message, Spent
from rapo_jax.io.http import HttpFailure
from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocol import Segment
from rapo_jax.tools import Tool

Wanted = tuple[Question, int]
"""A trajectory to sample: the n-th of its question."""
Keep = Callable[[Question, int, list[Segment]], None]
"""Takes a finished trajectory; called from several threads."""

PATIENCE = 8
"""Failed trajectories in a row, beyond two rounds of all threads, that end the sampling."""


@dataclass
class Outcome:
    """What became of the trajectories that were wanted."""

    finished: int = 0
    failed: int = 0
    problem: str = ""
    """Of the newest failure."""
    spent: str = ""
    """Which cap ended it, '' for none."""
    _in_a_row: int = 0


class Conversation:
    """An `Agent` for one trajectory: turns what the tool loop shows it into messages."""

    def __init__(self, endpoint: Endpoint, *, system: str) -> None:
        self._endpoint, self._system = endpoint, system
        self._messages: list[Message] = []
        self._seen = 0

    def __call__(self, question: str, history: str, rng: np.random.Generator) -> str:
        if not self._messages:
            self._messages = [
                {"role": "system", "content": self._system},
                {"role": "user", "content": question},
            ]
        else:
            self._messages.append({"role": "user", "content": history[self._seen :]})
        text = self._endpoint.step(self._messages)
        self._messages.append({"role": "assistant", "content": text})
        self._seen = len(history) + len(text)
        return text


def converse(
    endpoint: Endpoint,
    wanted: Sequence[Wanted],
    tools: Mapping[str, Tool],
    *,
    system: str,
    max_calls: int,
    concurrency: int,
    keep: Keep,
) -> Outcome:
    """Samples what is `wanted`, in about that order, until it is done or a spending cap is reached.

    A trajectory whose call failed is left out, and so are those under way when a cap is reached.

    Raises:
        ValueError: the endpoint refuses all calls, or fails again and again.
    """
    threads = min(concurrency, max(len(wanted), 1))
    line = _Line(wanted, patience=PATIENCE + 2 * threads)

    def work() -> None:
        for question, sample in line:
            agent = Conversation(endpoint, system=system)
            try:
                segments = run_agent(
                    agent, question, tools, max_calls=max_calls, rng=np.random.default_rng(0)
                )
            except HttpFailure as failure:
                line.fail(str(failure))
            except Spent as spent:
                line.end(str(spent))
            except BaseException:
                line.close()
                raise
            else:
                keep(question, sample, segments)
                line.succeed()

    with ThreadPoolExecutor(threads, thread_name_prefix="endpoint") as pool:
        try:
            for future in as_completed([pool.submit(work) for _ in range(threads)]):
                future.result()
        finally:
            line.close()  # leaving the pool waits for what is under way, and for no more
    return line.outcome


class _Line:
    """What is still to be sampled, for several threads, and what became of the rest."""

    def __init__(self, wanted: Sequence[Wanted], *, patience: int) -> None:
        self._left: Iterator[Wanted] = iter(wanted)
        self._lock = threading.Lock()
        self._patience = patience
        self._closed = False
        self.outcome = Outcome()

    def __iter__(self) -> Iterator[Wanted]:
        while True:
            with self._lock:
                each = None if self._closed else next(self._left, None)
            if each is None:
                return
            yield each

    def succeed(self) -> None:
        with self._lock:
            self.outcome.finished += 1
            self.outcome._in_a_row = 0

    def fail(self, problem: str) -> None:
        with self._lock:
            found = self.outcome
            found.failed, found.problem = found.failed + 1, problem
            found._in_a_row += 1
            lost = found._in_a_row >= self._patience
            self._closed |= lost
        if lost:
            raise ValueError(
                f"buffer.endpoint.url: {found._in_a_row} trajectories in a row failed, the last "
                f"with: {problem}; what is finished is kept: start again to go on"
            )

    def end(self, spent: str) -> None:
        with self._lock:
            self.outcome.spent = self.outcome.spent or spent
            self._closed = True

    def close(self) -> None:
        with self._lock:
            self._closed = True
