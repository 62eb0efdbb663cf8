"""The hybrid-policy rollout (paper, Algorithm 1): think -> act -> (perhaps) retrieve -> think ...

One pure function, `agent_turn`, is a turn of every slot. `rollout` repeats it: `while_unfinished`
in a program that calls the host through the bridge, or `loop_unfinished` from Python with its parts
compiled one by one. Both write the same tapes for the same key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.rollout.branching import branched, with_trees
from rapo_jax.rollout.reading import (
    HostAnswers,
    read,
)
from rapo_jax.rollout.slots import (
    Counts,
    Phase,
    RolloutInputs,
    Slots,
    closed,
    open_slots,
)
from rapo_jax.rollout.thinking import (
    Boundary,
    draw,
    step_of,
    think,
)
from rapo_jax.types import (
    ActAnswer,
    ActRequest,
    Array,
    Params,
    Span,
    Texts,
    TraceRequest,
    Trajectory,
)

Answer = TypeVar("Answer")
CallHost = Callable[..., Answer]
"""(callback, shapes of its answer, needed_U, request) -> answer; pytrees with slots first.

Where no slot needs it, the callback is not called and the answer is zeros. The bridge, or
`call_directly`.
"""


class HostCallbacks(NamedTuple):
    """The host functions of a turn.

    Both take numpy arrays with slots first, and answer for every slot. They never raise.
    """

    act: Callable[[ActRequest], ActAnswer]
    """Starts calls; brings the observations that are ready, and the queries of rows that retrieve.
    Waits for an observation only where no slot can sample."""
    search: Callable[[TraceRequest], Texts]
    """The step traces."""
    query_shape: jax.ShapeDtypeStruct
    """Shape and dtype of one row's query."""


class Parts(NamedTuple):
    """The device functions of a turn. The program inlines them; the Python loop compiles each."""

    open: Callable[..., Slots]
    """(params, prompts, *, group_size, tree_rows) -> slots: no row has begun."""
    think: Callable[..., Slots]
    """(params, inputs, slots) -> slots."""
    ask: Callable[..., tuple[ActRequest, Array]]
    """(inputs, slots) -> (request, pick_U): the rows that retrieve, and what, are drawn here."""
    embed: Callable[..., Array]
    """(query_U, retrieves_U) -> key_UE: the query, an embedding or an encoder's tokens, as a
    key."""
    read: Callable[..., Slots]
    """(params, inputs, slots, answers) -> slots."""
    close: Callable[..., Trajectory]
    """(slots) -> trajectory."""


def parts(
    model: ModelSettings,
    settings: RolloutSettings,
    boundary: Boundary,
    embed: Callable[[Array], Array],
    *,
    slots: int,
) -> Parts:
    """Builds the device functions of a turn for one model; `slots`: slots per row shard.

    `embed` turns the host's queries into keys.
    """

    def ask(inputs: RolloutInputs, slots: Slots) -> tuple[ActRequest, Array]:
        drawn_U, pick_U = draw(inputs, slots)
        calls_U, waits_U = slots.has(Phase.CALLING), slots.has(Phase.WAITING)
        row_U = inputs.row_B[slots.row_U]
        parent_U, shared_U = row_U, jnp.zeros_like(row_U)
        if slots.trees is not None:
            forks = slots.trees.forks
            parent_U = inputs.row_B[forks.parent_B[slots.row_U]]
            shared_U = forks.calls_B[slots.row_U]
        request = ActRequest(
            row_U=row_U,
            calls_U=calls_U,
            waits_U=waits_U,
            retrieves_U=drawn_U & (calls_U | waits_U),
            idle_U=jnp.broadcast_to(~slots.has(Phase.THINKING).any(), calls_U.shape),
            step=step_of(settings, slots),
            parent_U=parent_U,
            shared_U=shared_U,
        )
        return request, pick_U

    def open_shard(params: Params, prompt_QX: Span, *, group_size: int, tree_rows: int) -> Slots:
        how = {"slots": slots, "group_size": group_size}
        return with_trees(
            settings, open_slots(model, settings, params, prompt_QX, **how), tree_rows
        )

    def read_answers(
        params: Params, inputs: RolloutInputs, before: Slots, answers: HostAnswers
    ) -> Slots:
        after = read(model, settings, params, before, answers)
        return branched(model, settings, inputs, before, after, reading=True)

    return Parts(
        open_shard,
        partial(think, model, settings, boundary),
        ask,
        partial(embed_wanted, embed),
        read_answers,
        partial(closed, settings),
    )


def embed_wanted(embed: Callable[[Array], Array], query_U: Array, retrieves_U: Array) -> Array:
    """The keys [U, E] of the slots that retrieve, one after another; zeros for the others."""
    order_U = jnp.argsort(~retrieves_U)
    shape = jax.eval_shape(embed, query_U[:1])

    def one(index: Array, key_UE: Array) -> Array:
        u = order_U[index]
        return key_UE.at[u].set(embed(jax.lax.dynamic_slice_in_dim(query_U, u, 1))[0])

    keys = jnp.zeros((len(retrieves_U), *shape.shape[1:]), shape.dtype)
    return jax.lax.fori_loop(0, retrieves_U.sum(), one, keys)


def agent_turn(
    parts: Parts,
    call_host: CallHost,
    callbacks: HostCallbacks,
    settings: RolloutSettings,
    params: Params,
    inputs: RolloutInputs,
    slots: Slots,
    *,
    retrieves: bool,
) -> Slots:
    """Think, act, perhaps retrieve, read: one turn of all slots.

    `retrieves`: static; False where no row may retrieve (`n_hybrid` = 0). Such a program contains
    no retrieval.
    """
    slots = parts.think(params, inputs, slots)
    request, pick_U = parts.ask(inputs, slots)
    request = request.replace(retrieves_U=request.retrieves_U & retrieves)
    U = len(request.row_U)
    shapes = act_shapes(U, settings.observation_tokens, callbacks.query_shape)
    acted = call_host(callbacks.act, shapes, request.calls_U | request.waits_U, request)
    healthy_U, observation = acted.observation.healthy_U, acted.observation.span
    trace = Span(jnp.zeros((U, 0), jnp.int32), jnp.zeros((U,), jnp.int32))
    if retrieves:
        room_U = settings.max_tokens - slots.length_U - observation.length_B
        # a row without an observation ends, and needs no trace
        retrieves_U = request.retrieves_U & acted.ready_U & healthy_U & (observation.length_B > 0)
        retrieves_U = retrieves_U & (room_U > 1)  # for a trace and the policy
        key_UE = parts.embed(acted.query_U, retrieves_U)
        wanted = TraceRequest(request.row_U, retrieves_U, key_UE, pick_U, room_U)
        trace_shapes = text_shapes(U, settings.retrieved_tokens)
        found = call_host(callbacks.search, trace_shapes, retrieves_U, wanted)
        healthy_U = healthy_U & (found.healthy_U | ~retrieves_U)
        trace = found.span
    return parts.read(
        params, inputs, slots, HostAnswers(acted.ready_U, healthy_U, observation, trace)
    )


def text_shapes(slots: int, tokens: int) -> Texts:
    """Shapes of texts of at most `tokens` tokens."""
    shaped = jax.ShapeDtypeStruct
    span = Span(shaped((slots, tokens), jnp.int32), shaped((slots,), jnp.int32))
    return Texts(shaped((slots,), jnp.bool_), span)


def act_shapes(slots: int, tokens: int, query: jax.ShapeDtypeStruct) -> ActAnswer:
    """Shapes of an answer with observations of at most `tokens` tokens, and one query's shape."""
    texts = text_shapes(slots, tokens)
    query_U = jax.ShapeDtypeStruct((slots, *query.shape), query.dtype)
    return ActAnswer(texts.healthy_U, texts, query_U)


Turn = Callable[[Slots], Slots]


def while_unfinished(turn: Turn, slots: Slots) -> Slots:
    """Repeats a turn inside a program."""
    return jax.lax.while_loop(lambda slots: slots.unfinished, turn, slots)


def loop_unfinished(turn: Turn, slots: Slots) -> Slots:
    """Repeats a turn from Python: easy to debug, and cached by the compilation cache."""
    while slots.unfinished:
        slots = turn(slots)
    return slots


def call_directly(
    callback: Callable[..., Answer], shapes: Answer, needed_U: Array, request: object
) -> Answer:
    """Calls a host callback from Python, outside any program."""
    if np.asarray(needed_U).any():
        answer = callback(jax.tree.map(np.asarray, request))
    else:
        answer = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return jax.tree.map(jnp.asarray, answer)


def rollout(
    parts: Parts,
    call_host: CallHost,
    callbacks: HostCallbacks,
    settings: RolloutSettings,
    params: Params,
    inputs: RolloutInputs,
    prompt_QX: Span,
    *,
    group_size: int,
    retrieves: bool,
    tree_rows: int = 1,
    repeat: Callable[[Turn, Slots], Slots],
) -> tuple[Trajectory, Counts]:
    """Samples Q * G trajectories; returns the tapes and the shard's `Counts`.

    Rows (B = Q * G) are grouped by question. `params` are a `sampling_copy`; `prompt_QX` holds Q
    prompts. Trees of `tree_rows` consecutive rows share prefixes, see `branching`; 1: all are
    independent. `repeat` is `while_unfinished` in a program, or `loop_unfinished`.
    """
    fixed = (parts, call_host, callbacks, settings, params, inputs)
    turn = partial(agent_turn, *fixed, retrieves=retrieves)
    slots = parts.open(params, prompt_QX, group_size=group_size, tree_rows=tree_rows)
    slots = repeat(turn, slots)
    return parts.close(slots), slots.counts
