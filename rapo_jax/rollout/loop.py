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
    Answers,
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
from rapo_jax.types import Array, Params, Span, Trajectory

Answer = TypeVar("Answer")
CallHost = Callable[..., Answer]
"""(callback, shapes of its answer, needed_U, *slot arrays) -> answer.

Where no slot needs it, the callback is not called and the answer is zeros. The bridge, or
`call_directly`.
"""


class HostCallbacks(NamedTuple):
    """The host functions of a turn.

    Every callback takes numpy arrays with slots first, the row numbers being the first array, and
    answers for every slot; slots that are not asked for get an empty answer. Callbacks never raise.
    """

    act: Callable[..., tuple[np.ndarray, ...]]
    """(row_U, calls_U, waits_U, wants_U, idle_U, token_UX, length_U, parent_U, shared_U) ->
    (ready_U, healthy_U, token_UX, length_U, query_U): starts the calls of the steps calls_U, and
    brings the observations that are ready of these and of waits_U; it waits for one where idle_U. A
    row of wants_U also gets the query, which `embed` turns into the key of S_<t. The first
    shared_U calls of a fork are those of row parent_U."""
    search: Callable[..., tuple[np.ndarray, ...]]
    """(row_U, wants_U, key_UE, pick_U, room_U) -> (healthy_U, token_UX, length_U) trace; pick_U in
    [0, 1) asks for that random trace, -1 for the nearest; one of more than room_U tokens is left
    out."""
    query_shape: jax.ShapeDtypeStruct
    """Shape and dtype of one row's query."""


class Parts(NamedTuple):
    """The device functions of a turn. The program inlines them; the Python loop compiles each."""

    open: Callable[..., Slots]
    """(params, prompts, *, group_size, tree_rows) -> slots: no row has begun."""
    think: Callable[..., Slots]
    """(params, inputs, slots) -> slots."""
    ask: Callable[..., tuple[Array, ...]]
    """(inputs, slots) -> (*the arguments of `act` in their order, pick_U)."""
    embed: Callable[..., Array]
    """(query_U, wants_U) -> key_UE: the query, an embedding or an encoder's tokens, as a key."""
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

    def ask(inputs: RolloutInputs, slots: Slots) -> tuple[Array, ...]:
        step, (wants_U, pick_U) = step_of(settings, slots), draw(inputs, slots)
        calls_U, waits_U = slots.has(Phase.CALLING), slots.has(Phase.WAITING)
        idle_U = jnp.broadcast_to(~slots.has(Phase.THINKING).any(), calls_U.shape)
        row_U = inputs.row_B[slots.row_U]
        parent_U, shared_U = row_U, jnp.zeros_like(row_U)
        if slots.trees is not None:
            forks = slots.trees.forks
            parent_U = inputs.row_B[forks.parent_B[slots.row_U]]
            shared_U = forks.calls_B[slots.row_U]
        asked = (row_U, calls_U, waits_U, wants_U, idle_U, step.token_BX, step.length_B)
        return *asked, parent_U, shared_U, pick_U

    def open_shard(params: Params, prompt_QX: Span, *, group_size: int, tree_rows: int) -> Slots:
        how = {"slots": slots, "group_size": group_size}
        return with_trees(
            settings, open_slots(model, settings, params, prompt_QX, **how), tree_rows
        )

    def read_answers(
        params: Params, inputs: RolloutInputs, before: Slots, answers: Answers
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


def embed_wanted(embed: Callable[[Array], Array], query_U: Array, wants_U: Array) -> Array:
    """The keys [U, E] of the slots that want one, one after another; zeros for the others."""
    order_U = jnp.argsort(~wants_U)
    shape = jax.eval_shape(embed, query_U[:1])

    def one(index: Array, key_UE: Array) -> Array:
        u = order_U[index]
        return key_UE.at[u].set(embed(jax.lax.dynamic_slice_in_dim(query_U, u, 1))[0])

    keys = jnp.zeros((len(wants_U), *shape.shape[1:]), shape.dtype)
    return jax.lax.fori_loop(0, wants_U.sum(), one, keys)


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
    U = len(slots.row_U)

    def text_shapes(tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        shapes = (((U,), jnp.bool_), ((U, tokens), jnp.int32), ((U,), jnp.int32))
        return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)

    slots = parts.think(params, inputs, slots)
    row_U, calls_U, waits_U, wants_U, *rest, pick_U = parts.ask(inputs, slots)
    asks_U = calls_U | waits_U
    wants_U = wants_U & asks_U & retrieves
    ready = jax.ShapeDtypeStruct((U,), jnp.bool_)
    query = jax.ShapeDtypeStruct((U, *callbacks.query_shape.shape), callbacks.query_shape.dtype)
    shapes = (ready, *text_shapes(settings.observation_tokens), query)
    ready_U, healthy_U, token_UX, length_U, query_U = call_host(
        callbacks.act, shapes, asks_U, row_U, calls_U, waits_U, wants_U, *rest
    )
    observation = Span(token_UX, length_U)
    trace = Span(jnp.zeros((U, 0), jnp.int32), jnp.zeros((U,), jnp.int32))
    if retrieves:
        # a row without an observation ends, and needs no trace
        wants_U = wants_U & ready_U & healthy_U & (observation.length_B > 0)
        room_U = settings.max_tokens - slots.length_U - observation.length_B
        wants_U = wants_U & (room_U > 0)
        key_UE = parts.embed(query_U, wants_U)
        healthy_too_U, token_UX, length_U = call_host(
            callbacks.search,
            text_shapes(settings.retrieved_tokens),
            wants_U,
            *(row_U, wants_U, key_UE, pick_U, room_U),
        )
        healthy_U = healthy_U & (healthy_too_U | ~wants_U)
        trace = Span(token_UX, length_U)
    return parts.read(params, inputs, slots, Answers(ready_U, healthy_U, observation, trace))


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
    callback: Callable[..., Answer], shapes: Answer, needed_U: Array, *slot_arrays: Array
) -> Answer:
    """Calls a host callback from Python, outside any program."""
    if np.asarray(needed_U).any():
        answer = callback(*map(np.asarray, slot_arrays))
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
