"""Trajectories of a chat endpoint through the real tools, many at a time.

A trajectory is a conversation: the system prompt, the question, and then in turn a step of the
model and the observation that its call caused, as a user's message. An endpoint needs only chat.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from rapo_jax.buffer.agents import run_agent
from rapo_jax.buffer.endpoint import ChatMessage, Endpoint, Spent
from rapo_jax.io.http import HttpFailure
from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocol import Segment
from rapo_jax.tools.observation import Tool

Wanted = tuple[Question, int]
"""A trajectory to sample: the n-th of its question."""
Keep = Callable[[Question, int, list[Segment]], None]
"""Takes a finished trajectory; called from several threads."""

PATIENCE = 8
"""Consecutive failures, beyond two rounds of all threads, that end the sampling."""


@dataclass
class Outcome:
    """How many of the wanted trajectories finished and failed."""

    finished: int = 0
    failed: int = 0
    problem: str = ""
    """The newest failure."""
    spent: str = ""
    """The spending cap that ended the sampling, '' for none."""
    consecutive_failures: int = 0


class Conversation:
    """An `Agent` for one trajectory, which turns the growing history into messages."""

    def __init__(self, endpoint: Endpoint, *, system: str) -> None:
        self._endpoint, self._system = endpoint, system
        self._messages: list[ChatMessage] = []
        self._read_chars = 0
        self._steps: list[str] = []  # of the last message, still to be done

    def __call__(self, question: str, history: str, rng: np.random.Generator) -> str:
        if not self._messages:
            self._messages = [
                {"role": "system", "content": self._system},
                {"role": "user", "content": question},
            ]
        else:
            self._messages.append({"role": "user", "content": history[self._read_chars :]})
        self._steps = self._steps or self._endpoint.steps(self._messages)
        text = self._steps.pop(0)
        self._messages.append({"role": "assistant", "content": text})
        self._read_chars = len(history) + len(text)
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
    """Samples the `wanted` trajectories, in about that order, or until a spending cap is reached.

    A trajectory whose call failed is left out, and so are unfinished ones when a cap is reached.

    Raises:
        ValueError: the endpoint refuses all calls, or fails again and again.
    """
    threads = min(concurrency, max(len(wanted), 1))
    queue = _Queue(wanted, patience=PATIENCE + 2 * threads)

    def work() -> None:
        for question, sample in queue:
            agent = Conversation(endpoint, system=system)
            try:
                segments = run_agent(
                    agent, question, tools, max_calls=max_calls, rng=np.random.default_rng(0)
                )
            except HttpFailure as failure:
                queue.fail(str(failure))
            except Spent as spent:
                queue.end(str(spent))
            except BaseException:
                queue.close()
                raise
            else:
                keep(question, sample, segments)
                queue.succeed()

    with ThreadPoolExecutor(threads, thread_name_prefix="endpoint") as pool:
        try:
            for future in as_completed([pool.submit(work) for _ in range(threads)]):
                future.result()
        finally:
            queue.close()  # leaving the pool then waits for running trajectories only
    return queue.outcome


class _Queue:
    """The trajectories still to sample, for several threads, and the outcome so far."""

    def __init__(self, wanted: Sequence[Wanted], *, patience: int) -> None:
        self._left: Iterator[Wanted] = iter(wanted)
        self._lock = threading.Lock()
        self._patience = patience
        self._closed = False
        self.outcome = Outcome()

    def __iter__(self) -> Iterator[Wanted]:
        while True:
            with self._lock:
                wanted = None if self._closed else next(self._left, None)
            if wanted is None:
                return
            yield wanted

    def succeed(self) -> None:
        with self._lock:
            self.outcome.finished += 1
            self.outcome.consecutive_failures = 0

    def fail(self, problem: str) -> None:
        with self._lock:
            self.outcome.failed += 1
            self.outcome.problem = problem
            self.outcome.consecutive_failures += 1
            failures = self.outcome.consecutive_failures
            self._closed |= failures >= self._patience
        if failures >= self._patience:
            raise ValueError(
                f"buffer.endpoint.url: {failures} trajectories in a row failed, the last with: "
                f"{problem}; finished trajectories are kept: start again to continue"
            )

    def end(self, spent: str) -> None:
        with self._lock:
            self.outcome.spent = self.outcome.spent or spent
            self._closed = True

    def close(self) -> None:
        with self._lock:
            self._closed = True
