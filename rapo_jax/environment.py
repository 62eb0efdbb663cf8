"""The host callbacks of a rollout: what tools and buffer answer to each row.

The history of each row lives here, keyed by row, so that only the new step's tokens cross the
border. Callbacks are called from inside a running program, from one thread per device: they take
and return numpy arrays, never raise (a callback that raises breaks the runtime) and never touch
jax. A row that could not be served is answered with `healthy = False`; the first error is kept in
`failure`, and the trainer raises it after the program.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rapo_jax.buffer.retriever import Retriever
from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocol import parse_step, render_result, render_retrieved, without_retrieved
from rapo_jax.text.tokens import Tokens
from rapo_jax.tools import Tool

REMEMBERED_TEXTS = 65_536
"""Tokenized observations and traces kept: most come again and again."""

Query = Callable[[Sequence[str]], np.ndarray]
"""Key texts -> what the device turns into keys: embeddings, or the tokens of an encoder."""


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
    """Rows of running trajectories, their tools and their memory."""

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
        remembered = functools.lru_cache(maxsize=REMEMBERED_TEXTS)
        self._observation_ids = remembered(
            functools.partial(observation_ids, tokens, room=observation_tokens)
        )
        self._retrieved_ids = remembered(
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
        """Gives the environment a Step-Trace Buffer to retrieve from."""
        self._retriever, self._query = retriever, query
        self._exclude_same_question, self._without_retrieved_history = (
            exclude_same_question,
            without_retrieved_history,
        )

    def begin(self, row_questions: Sequence[Question]) -> None:
        """Starts a fresh trajectory in every row; row b asks `row_questions[b]`."""
        self._questions = list(row_questions)
        self._history = [""] * len(self._questions)
        self.calls = [[] for _ in self._questions]
        self.failure = None

    def take_counts(self) -> dict[str, float]:
        """Counts since the last call: calls by tool, outcomes, retrievals, host seconds.

        `failed/NAME` counts the calls of an own tool whose outcome was not ok.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
        retrieved = self._retriever.take_counts() if self._retriever else {}
        return dict(counts) | {f"buffer/{name}": value for name, value in retrieved.items()}

    def act(
        self, row_B: np.ndarray, token_BX: np.ndarray, length_B: np.ndarray, calls_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs the call that each row's new step closed; answers with the observation's tokens."""
        answer = self._empty(len(row_B), self._observation_tokens)
        return self._serve(
            lambda: self._act(row_B, token_BX, length_B, calls_B, answer), calls_B, answer
        )

    def query(self, row_B: np.ndarray, wants_B: np.ndarray, *, query: np.ndarray) -> np.ndarray:
        """What the device turns into the key of S_<t, for the rows that want a trace.

        `query` is a blank answer, filled in place.
        """
        self._serve(lambda: self._fill_query(row_B, wants_B, query), wants_B, None)
        return query

    def search(
        self,
        row_B: np.ndarray,
        wants_B: np.ndarray,
        key_BE: np.ndarray,
        pick_B: np.ndarray,
        room_B: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nearest step trace of the rows that want one; `pick_B` >= 0 asks for a random one.

        A row without room for its trace gets none, and its history does not hold it either.
        """
        answer = self._empty(len(row_B), self._retrieved_tokens)
        return self._serve(
            lambda: self._search(row_B, wants_B, key_BE, pick_B, room_B, answer), wants_B, answer
        )

    def _empty(self, rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.zeros((rows, tokens), np.int32), np.zeros(rows, np.int32), np.ones(rows, bool)

    def _serve(self, work: Callable[[], None], asked_B: np.ndarray, answer):
        started = time.perf_counter()
        try:
            if np.any(asked_B):
                work()
        except BaseException as error:  # whatever it is, it must not reach the runtime
            with self._lock:
                self.failure = self.failure or error
            if answer is not None:
                answer[1][:] = 0
                answer[2][:] = ~np.asarray(asked_B, bool)
        with self._lock:
            self._counts["seconds"] += time.perf_counter() - started
        return answer

    def _act(self, row_B, token_BX, length_B, calls_B, answer) -> None:
        token_BX2, length_B2, _ = answer
        calls: dict[str, list[tuple[int, int, str]]] = {}
        for b in np.flatnonzero(calls_B).tolist():
            text = self.tokens.decode(token_BX[b, : length_B[b]])
            row = int(row_B[b])
            self._history[row] += text
            step = parse_step(text, self.tokens.user_tools)
            calls.setdefault(step.kind, []).append((b, row, step.content))
        counts: Counter[str] = Counter()
        for kind, asking in calls.items():
            for (b, row, _), observation in zip(
                asking, self._tools[kind]([content for *_, content in asking]), strict=True
            ):
                self.calls[row].append((kind, observation.outcome))
                counts[kind] += 1
                counts[f"outcome/{observation.outcome}"] += 1
                if kind in self.tokens.user_tools and observation.outcome != "ok":
                    counts[f"failed/{kind}"] += 1
                ids = self._observation_ids(observation.text)
                token_BX2[b, : len(ids)] = ids
                length_B2[b] = len(ids)
                self._history[row] += self.tokens.decode(ids)
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def _fill_query(self, row_B, wants_B, query) -> None:
        assert self._retriever is not None and self._query is not None
        asking = np.flatnonzero(wants_B)
        rows = [int(row_B[b]) for b in asking]
        texts = self._retriever.key_texts(
            [self._questions[row].question for row in rows],
            [self._key_history(row) for row in rows],
        )
        query[asking] = self._query(texts)

    def _key_history(self, row: int) -> str:
        history = self._history[row]
        return without_retrieved(history) if self._without_retrieved_history else history

    def _search(self, row_B, wants_B, key_BE, pick_B, room_B, answer) -> None:
        assert self._retriever is not None
        token_BX, length_B, _ = answer
        asking = np.flatnonzero(wants_B)
        ids_of_questions = [self._questions[int(row_B[b])].id for b in asking]
        hits = self._retriever.nearest(
            key_BE[asking],
            question_ids=ids_of_questions,
            exclude_question_ids=ids_of_questions if self._exclude_same_question else None,
            pick_B=pick_B[asking],
        )
        for b, hit in zip(asking.tolist(), hits, strict=True):
            ids = self._retrieved_ids(hit.value) if hit.value else []
            if not 0 < len(ids) <= room_B[b]:
                continue
            token_BX[b, : len(ids)] = ids
            length_B[b] = len(ids)
            self._history[int(row_B[b])] += self.tokens.decode(ids)
