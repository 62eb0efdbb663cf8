"""The host callbacks of a rollout: tool calls and retrievals of each row.

The history of each row is kept here, so that a callback passes the new step's tokens only.
Callbacks are called from inside a running program, from one thread per device: they take and return
numpy arrays, never raise (a callback that raises breaks the runtime) and never touch jax. A row
whose callback failed is returned with `healthy = False`; the first error is kept in `failure`, and
the trainer raises it after the program.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from rapo_jax.buffer.retriever import Retriever
from rapo_jax.tasks.schema import Question
from rapo_jax.text.condensing import Condense, condensing_prompt
from rapo_jax.text.observations import EnvironmentTexts, Written
from rapo_jax.text.protocol import without_retrieved
from rapo_jax.text.tokens import Tokens
from rapo_jax.tools.busy import BusyTime
from rapo_jax.tools.calls import Called, RunningCalls
from rapo_jax.tools.condensing import condense_searches
from rapo_jax.tools.observation import Tool
from rapo_jax.types import ActAnswer, ActRequest, Span, Texts, TraceRequest

Query = Callable[[Sequence[str]], np.ndarray]
"""Key texts -> queries for the device: embeddings, or token ids of an encoder."""


class Environment:
    """Running trajectories, the tools they call, and the buffer they retrieve from."""

    def __init__(
        self,
        tokens: Tokens,
        tools: Mapping[str, Tool],
        *,
        observation_tokens: int,
        retrieved_tokens: int,
        max_calls: int = 2**30,
        condense_room: int = 0,
    ) -> None:
        """`max_calls`: most calls of a row; `condense_room`: tokens of a condensing prompt."""
        self.tokens = tokens
        self._texts = EnvironmentTexts(tokens, observation_tokens, retrieved_tokens)
        self._condense_room = condense_room
        self._retriever: Retriever | None = None
        self._query: Query | None = None
        self._exclude_same_question = False
        self._without_retrieved_history = False
        self._condense: Condense | None = None
        self._questions: list[Question] = []
        self.row_origins: list[str] = []
        self._history: list[str] = []
        self._begins: list[list[int]] = []  # places in it at which the steps of calls begin
        self._counts: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._time = BusyTime()
        self._running = RunningCalls(tools, tokens.protocol, max_calls=max_calls)
        self.first_row = 0
        """Number of row 0 of all processes in the rollout program."""
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

    def begin(
        self,
        row_questions: Sequence[Question],
        *,
        opened: str = "",
        condense: Condense | None = None,
        first_row: int = 0,
    ) -> None:
        """Starts a new trajectory in every row; row b answers `row_questions[b]`.

        `opened` is what the chat template wrote of the responses, see `Tokens.opened`. `condense`
        condenses the documents of searches; it wants rollout.driver='host', as it runs programs.
        """
        self._condense, self.first_row = condense, first_row
        self._questions = list(row_questions)
        self._history = [opened] * len(self._questions)
        self._begins = [[] for _ in self._questions]
        self.calls = [[] for _ in self._questions]
        self._running.begin()
        self.failure = None

    def take_counts(self) -> dict[str, float]:
        """Counts since the last call: calls by tool, outcomes, retrievals, wall seconds.

        `seconds`: in which any thread was in a callback; `waited`: in which all of these waited for
        tools. `failed/NAME` counts the calls of a user's tool whose outcome was not ok.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
        retrieved = self._retriever.take_counts() if self._retriever else {}
        times = dict(zip(("seconds", "waited"), self._time.take(), strict=True))
        return dict(counts) | times | {f"buffer/{name}": value for name, value in retrieved.items()}

    def act(self, request: ActRequest, *, query_U: np.ndarray) -> ActAnswer:
        """Starts the calls that steps have closed; returns what is ready.

        A slow call delays its own row: the rows of `waits_U` are asked for again. If no slot of
        the shard can sample (`idle_U`), waits for one observation; if searches are condensed, for
        all, which are read together then, and not before. `query_U` is a blank result, filled in
        place. A fork's history begins with that of its parent up to its first `shared_U` calls.
        """
        row_U, calls_U, shared_U = request.row_U, request.calls_U, request.shared_U
        texts = _no_texts(len(row_U), self._texts.observation_tokens)
        asked_U = calls_U | request.waits_U
        ready_U = np.zeros(len(row_U), bool)
        with self._errors_kept(asked_U, texts, ready_U):
            for u in np.flatnonzero(calls_U & (shared_U > 0)).tolist():
                self._fork(int(row_U[u]), int(request.parent_U[u]), int(shared_U[u]))
            self._start(row_U, calls_U, request.step)
            if idle := bool(request.idle_U.all()):
                self._wait(row_U[asked_U].tolist())
            asked = np.flatnonzero(asked_U & (idle or self._condense is None)).tolist()
            done = [u for u in asked if self._running.done(int(row_U[u]))]
            called = [self._running.take(int(row_U[u])) for u in done]
            for u, results in zip(done, self._condensed(row_U[done].tolist(), called), strict=True):
                row = int(row_U[u])
                ready_U[u] = True
                for step, observation in results:
                    self._record_call(row, step.kind, observation.outcome)
                replies = [(step, observation.text) for step, observation in results]
                self._give(texts, u, row, self._texts.reply(replies))
            self._fill_queries(row_U, ready_U & request.retrieves_U, query_U)
        return ActAnswer(ready_U, texts, query_U)

    def _start(self, row_U: np.ndarray, calls_U: np.ndarray, step: Span) -> None:
        """Appends the new steps to their rows' histories and hands their calls to the tools."""
        steps = []
        for u in np.flatnonzero(calls_U).tolist():
            text = self.tokens.decode(step.token_BX[u, : step.length_B[u]])
            row = int(row_U[u])
            self._begins[row].append(len(self._history[row]))
            self._history[row] += text
            steps.append((row, text))
        self._running.start(steps)

    def _condensed(self, rows: list[int], called: list[list[Called]]) -> list[list[Called]]:
        """The calls of these rows; observations of searches are condensed by the model."""
        if self._condense is None:
            return called
        make = partial(condensing_prompt, self.tokens, room=self._condense_room)
        history = [self._history[row] for row in rows]
        before = [self.calls[row].count(("search", "ok")) for row in rows]
        row_calls = [(self.first_row + row, n) for row, n in zip(rows, before, strict=True)]
        condensed, counts = condense_searches(self._condense, make, called, history, row_calls)
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
        return condensed

    def _fork(self, row: int, parent: int, shared: int) -> None:
        """Before a fork's first call: copies its parent's history up to `shared` calls."""
        if not self._begins[row]:
            end = (*self._begins[parent], None)[shared]
            self._history[row] = self._history[parent][:end]
            self._begins[row] = self._begins[parent][:shared]
            self._running.fork(row, parent, steps=shared)

    def _wait(self, rows: Sequence[int]) -> None:
        """Waits until one of these rows has its observation; all where searches are condensed."""
        with self._time.waiting():
            self._running.wait(rows, for_all=self._condense is not None)

    def _fill_queries(
        self, row_U: np.ndarray, retrieves_U: np.ndarray, query_U: np.ndarray
    ) -> None:
        wanting = np.flatnonzero(retrieves_U)
        if not wanting.size:
            return
        assert self._retriever is not None and self._query is not None
        rows = row_U[wanting].tolist()
        histories = [self._history[row] for row in rows]
        if self._without_retrieved_history:
            histories = list(map(without_retrieved, histories))
        questions = [self._questions[row].question for row in rows]
        query_U[wanting] = self._query(self._retriever.key_texts(questions, histories))

    def search(self, request: TraceRequest) -> Texts:
        """The step traces that rows ask for.

        A trace of more than `room_U` tokens is not retrieved, nor added to the row's history.
        """
        row_U = request.row_U
        texts = _no_texts(len(row_U), self._texts.retrieved_tokens)
        with self._errors_kept(request.retrieves_U, texts):
            wanting = np.flatnonzero(request.retrieves_U)
            if wanting.size:
                assert self._retriever is not None
                hits = self._retriever.nearest(
                    request.key_UE[wanting],
                    question_ids=[self._questions[int(row_U[u])].id for u in wanting],
                    exclude_same_question=self._exclude_same_question,
                    pick_B=request.pick_U[wanting],
                    origins=[self.row_origins[int(row_U[u])] for u in wanting] if self.row_origins else (),
                )
                given = []
                for u, hit in zip(wanting.tolist(), hits, strict=True):
                    if not hit.value:
                        continue
                    trace = self._texts.retrieved(hit.value)
                    if len(trace.token_X) <= request.room_U[u]:
                        self._give(texts, u, int(row_U[u]), trace)
                        given.append(hit)
                self._retriever.count(given)
        return texts

    @contextlib.contextmanager
    def _errors_kept(
        self, asked_U: np.ndarray, texts: Texts, ready_U: np.ndarray | None = None
    ) -> Iterator[None]:
        """Stores an error instead of raising it: the asked rows are ready, and not healthy."""
        try:
            with self._time.busy():
                yield
        except BaseException as error:  # of any kind: it must not reach the runtime
            with self._lock:
                self.failure = self.failure or error
            texts.span.length_B[:] = 0
            texts.healthy_U[:] = ~asked_U
            if ready_U is not None:
                ready_U[:] = asked_U

    def _record_call(self, row: int, tool: str, outcome: str) -> None:
        self.calls[row].append((tool, outcome))
        with self._lock:
            self._counts[tool] += 1
            self._counts[f"outcome/{outcome}"] += 1
            if tool in self.tokens.user_tools and outcome != "ok":
                self._counts[f"failed/{tool}"] += 1

    def _give(self, texts: Texts, u: int, row: int, written: Written) -> None:
        """Writes a text into slot u of `texts` and appends it to the row's history."""
        length = len(written.token_X)
        texts.span.token_BX[u, :length] = written.token_X
        texts.span.length_B[u] = length
        self._history[row] += written.text


def _no_texts(slots: int, tokens: int) -> Texts:
    span = Span(np.zeros((slots, tokens), np.int32), np.zeros(slots, np.int32))
    return Texts(np.ones(slots, bool), span)
