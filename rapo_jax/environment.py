"""The host callbacks of a rollout: tool calls and retrievals of each row.

The history of each row is kept here, so that a callback passes the new step's tokens only.
Callbacks are called from inside a running program, from one thread per device: they take and return
numpy arrays, never raise (a callback that raises breaks the runtime) and never touch jax. A row
whose callback failed is returned with `healthy = False`; the first error is kept in `failure`, and
the trainer raises it after the program.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from rapo_jax.buffer.retriever import Retriever
from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocol import parse_step, render_result, render_retrieved, without_retrieved
from rapo_jax.text.tokens import Tokens
from rapo_jax.tools.observation import Tool

CACHED_TEXTS = 65_536
"""Tokenized observations and traces that are cached: most texts occur many times."""

Query = Callable[[Sequence[str]], np.ndarray]
"""Key texts -> what the device turns into keys: embeddings, or the tokens of an encoder."""

Texts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""token_BX, length_B and healthy_B of a text for each row; length 0 for none."""


def observation_ids(tokens: Tokens, observation: str, *, room: int) -> list[int]:
    """Tokens of `<result>...</result>`, the observation cut so that all of it fits."""
    return _fit(tokens, render_result(observation, tokens.user_tools), "</result>", room)


def retrieved_ids(tokens: Tokens, trace: str, *, room: int) -> list[int]:
    """Tokens of `<retrieve>...</retrieve>`, the end of the trace cut so that all of it fits."""
    return _fit(tokens, render_retrieved(trace), "</retrieve>", room)


def _fit(tokens: Tokens, text: str, ending: str, room: int) -> list[int]:
    ids = tokens.encode_protocol(text)
    if len(ids) <= room:
        return ids
    closing = tokens.encode_protocol(ending)
    return ids[: room - len(closing)] + closing


class Environment:
    """Running trajectories, the tools they call, and the buffer they retrieve from."""

    def __init__(
        self,
        tokens: Tokens,
        tools: Mapping[str, Tool],
        *,
        observation_tokens: int,
        retrieved_tokens: int,
    ) -> None:
        self.tokens = tokens
        self._tools = tools
        self._observation_tokens = observation_tokens
        self._retrieved_tokens = retrieved_tokens
        cached = functools.lru_cache(maxsize=CACHED_TEXTS)
        self._observation_ids = cached(
            functools.partial(observation_ids, tokens, room=observation_tokens)
        )
        self._retrieved_ids = cached(
            functools.partial(retrieved_ids, tokens, room=retrieved_tokens)
        )
        self._retriever: Retriever | None = None
        self._query: Query | None = None
        self._exclude_same_question = False
        self._without_retrieved_history = False
        self._questions: list[Question] = []
        self._history: list[str] = []
        self._counts: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self.calls: list[list[tuple[str, str]]] = []
        """Of each row: (tool, outcome) of its calls, in their order."""
        self.failure: BaseException | None = None

    def use_buffer(
        self,
        retriever: Retriever,
        query: Query,
        *,
        exclude_same_question: bool,
        without_retrieved_history: bool,
    ) -> None:
        """Sets the Step-Trace Buffer to retrieve from.

        `exclude_same_question`: a row gets no trace of its question. `without_retrieved_history`:
        keys are made from the history without retrieved traces.
        """
        self._retriever, self._query = retriever, query
        self._exclude_same_question = exclude_same_question
        self._without_retrieved_history = without_retrieved_history

    def begin(self, row_questions: Sequence[Question]) -> None:
        """Starts a new trajectory in every row; row b answers `row_questions[b]`."""
        self._questions = list(row_questions)
        self._history = [""] * len(self._questions)
        self.calls = [[] for _ in self._questions]
        self.failure = None

    def take_counts(self) -> dict[str, float]:
        """Counts since the last call: calls by tool, outcomes, retrievals, host seconds.

        `failed/NAME` counts the calls of a user's tool whose outcome was not ok.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
        retrieved = self._retriever.take_counts() if self._retriever else {}
        return dict(counts) | {f"buffer/{name}": value for name, value in retrieved.items()}

    def act(
        self, row_B: np.ndarray, token_BX: np.ndarray, length_B: np.ndarray, calls_B: np.ndarray
    ) -> Texts:
        """Runs the call that each row's new step closed; returns the observations."""
        texts = _no_texts(len(row_B), self._observation_tokens)
        with self._errors_kept(calls_B, texts):
            calls: dict[str, list[tuple[int, int, str]]] = {}
            for b in np.flatnonzero(calls_B).tolist():
                text = self.tokens.decode(token_BX[b, : length_B[b]])
                row = int(row_B[b])
                self._history[row] += text
                step = parse_step(text, self.tokens.user_tools)
                calls.setdefault(step.kind, []).append((b, row, step.content))
            for tool, callers in calls.items():
                observations = self._tools[tool]([content for *_, content in callers])
                for (b, row, _), observation in zip(callers, observations, strict=True):
                    self._record_call(row, tool, observation.outcome)
                    self._give(texts, b, row, self._observation_ids(observation.text))
        return texts

    def query(self, row_B: np.ndarray, wants_B: np.ndarray, *, query: np.ndarray) -> np.ndarray:
        """What the device turns into the key of S_<t, for the rows that want a trace.

        `query` is a blank result, filled in place.
        """
        with self._errors_kept(wants_B):
            wanting = np.flatnonzero(wants_B)
            if wanting.size:
                assert self._retriever is not None and self._query is not None
                rows = [int(row_B[b]) for b in wanting]
                histories = [self._history[row] for row in rows]
                if self._without_retrieved_history:
                    histories = list(map(without_retrieved, histories))
                questions = [self._questions[row].question for row in rows]
                query[wanting] = self._query(self._retriever.key_texts(questions, histories))
        return query

    def search(
        self,
        row_B: np.ndarray,
        wants_B: np.ndarray,
        key_BE: np.ndarray,
        pick_B: np.ndarray,
        room_B: np.ndarray,
    ) -> Texts:
        """The nearest step trace of the rows that want one; `pick_B` >= 0 asks for a random one.

        A row without room for its trace gets none, and its history does not hold it either.
        """
        texts = _no_texts(len(row_B), self._retrieved_tokens)
        with self._errors_kept(wants_B, texts):
            wanting = np.flatnonzero(wants_B)
            if wanting.size:
                assert self._retriever is not None
                hits = self._retriever.nearest(
                    key_BE[wanting],
                    question_ids=[self._questions[int(row_B[b])].id for b in wanting],
                    exclude_same_question=self._exclude_same_question,
                    pick_B=pick_B[wanting],
                )
                for b, hit in zip(wanting.tolist(), hits, strict=True):
                    ids = self._retrieved_ids(hit.value) if hit.value else []
                    if 0 < len(ids) <= room_B[b]:
                        self._give(texts, b, int(row_B[b]), ids)
        return texts

    @contextlib.contextmanager
    def _errors_kept(self, asked_B: np.ndarray, texts: Texts | None = None) -> Iterator[None]:
        """Keeps an error instead of raising it, and marks the asked rows of `texts` unhealthy."""
        started = time.perf_counter()
        try:
            yield
        except BaseException as error:  # of any kind: it must not reach the runtime
            with self._lock:
                self.failure = self.failure or error
            if texts is not None:
                _, length_B, healthy_B = texts
                length_B[:] = 0
                healthy_B[:] = ~np.asarray(asked_B, bool)
        with self._lock:
            self._counts["seconds"] += time.perf_counter() - started

    def _record_call(self, row: int, tool: str, outcome: str) -> None:
        self.calls[row].append((tool, outcome))
        with self._lock:
            self._counts[tool] += 1
            self._counts[f"outcome/{outcome}"] += 1
            if tool in self.tokens.user_tools and outcome != "ok":
                self._counts[f"failed/{tool}"] += 1

    def _give(self, texts: Texts, b: int, row: int, ids: list[int]) -> None:
        """Writes a text into place b of `texts` and appends it to the row's history."""
        token_BX, length_B, _ = texts
        token_BX[b, : len(ids)] = ids
        length_B[b] = len(ids)
        self._history[row] += self.tokens.decode(ids)


def _no_texts(rows: int, tokens: int) -> Texts:
    return np.zeros((rows, tokens), np.int32), np.zeros(rows, np.int32), np.ones(rows, bool)
