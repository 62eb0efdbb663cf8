"""An environment in the house, and its callbacks with texts instead of arrays."""

from __future__ import annotations

import numpy as np
import pytest

from rapo_jax.environment import Environment
from rapo_jax.types import ActRequest, Span, TraceRequest
from tests.environment.stand_ins import ROOM, STEP, TRACE_ROOM, Acted, Gate


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()  # a thread that waits would hold Python's exit up


@pytest.fixture
def make(house):
    """An environment with these tools, and room as the small rollout has it."""

    def make(
        tools,
        *,
        without_retrieved_history=True,
        query=None,
        exclude=False,
        tokens=None,
        room=ROOM,
        max_calls=99,
        condense_room=0,
    ):
        found = Environment(
            tokens or house.tokens,
            tools,
            observation_tokens=room,
            retrieved_tokens=TRACE_ROOM,
            max_calls=max_calls,
            condense_room=condense_room,
        )
        found.use_buffer(
            house.retriever,
            query or house.encode,
            exclude_same_question=exclude,
            without_retrieved_history=without_retrieved_history,
        )
        found.begin(house.asked)
        return found

    return make


@pytest.fixture
def act_once(house):
    """Calls `act` with steps of rows as the rollout writes them; unless said otherwise all call."""

    def ask(
        environment,
        steps,
        *,
        rows=None,
        calls=None,
        waits=None,
        wants=None,
        idle=True,
        parents=None,
        shared=None,
    ):
        U = len(steps)
        token_UX, length_U = np.zeros((U, STEP), np.int32), np.zeros(U, np.int32)
        for u, text in enumerate(steps):
            ids = house.tokens.encode_protocol(text)
            token_UX[u, : len(ids)], length_U[u] = ids, len(ids)
        row_U = np.arange(U, dtype=np.int32) if rows is None else np.array(rows)
        calls_U, waits_U, wants_U = (
            np.full(U, default) if given is None else np.array(given)
            for given, default in ((calls, True), (waits, False), (wants, False))
        )
        width = house.retriever.buffer.key_ME.shape[1]
        request = ActRequest(
            row_U=row_U,
            calls_U=calls_U,
            waits_U=waits_U,
            retrieves_U=wants_U,
            idle_U=np.full(U, idle),
            step=Span(token_UX, length_U),
            parent_U=row_U if parents is None else np.array(parents),
            shared_U=np.zeros(U, int) if shared is None else np.array(shared),
        )
        answer = environment.act(request, query_U=np.zeros((U, width), np.float32))
        healthy_U, span = answer.observation.healthy_U, answer.observation.span
        assert span.token_BX.dtype == span.length_B.dtype == np.int32
        assert answer.ready_U.dtype == healthy_U.dtype == bool
        texts = texts_of(house, span.token_BX, span.length_B)
        return Acted(answer.ready_U.tolist(), healthy_U.tolist(), texts, answer.query_U)

    return ask


@pytest.fixture
def act(act_once):
    """As `act_once` until all rows are ready; returns their observations' texts and health."""

    def ask(environment, steps, rows=None, calls=None):
        waiting_U = np.ones(len(steps), bool) if calls is None else np.array(calls)
        texts, healthy, how = [""] * len(steps), [True] * len(steps), {"calls": waiting_U}
        while waiting_U.any():
            found = act_once(environment, steps, rows=rows, **how)
            assert any(found.ready)  # for all slots are idle
            assert not (np.array(found.ready) & ~waiting_U).any()
            for u in np.flatnonzero(found.ready):
                texts[u], healthy[u] = found.texts[u], found.healthy[u]
            waiting_U = waiting_U & ~np.array(found.ready)
            how = {"calls": np.zeros(len(steps), bool), "waits": waiting_U}
        return texts, healthy

    return ask


def texts_of(house, token_BX, length_B):
    pairs = zip(token_BX, length_B, strict=True)
    return [house.tokens.decode(row[:length]) for row, length in pairs]


@pytest.fixture
def search(house):
    """Traces for rows; returns their texts and health."""

    def ask(environment, rows, *, wants=None, pick=-1.0, room=1000):
        row_B, wants_B = np.array(rows), np.ones(len(rows), bool)
        if wants is not None:
            wants_B = np.array(wants)
        key_BE = np.zeros((len(rows), house.retriever.buffer.key_ME.shape[1]), np.float32)
        environment._fill_queries(row_B, wants_B, key_BE)
        pick_B, room_B = np.full(len(rows), pick), np.full(len(rows), room)
        found = environment.search(TraceRequest(row_B, wants_B, key_BE, pick_B, room_B))
        return texts_of(house, found.span.token_BX, found.span.length_B), found.healthy_U.tolist()

    return ask
