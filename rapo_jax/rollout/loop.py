"""The hybrid-policy rollout (paper, Algorithm 1): think -> act -> (perhaps) retrieve -> go on.

One pure function, `agent_step`, is a step of every row. `rollout` scans it inside one program, with
the host callbacks reached through the bridge; `rollout_on_host` drives the very same function from
Python, its parts compiled one by one. Both write identical tapes for the same key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.rollout.bridge import host_call
from rapo_jax.rollout.spans import Boundary, Tape, absorb, decode, open_tape
from rapo_jax.types import Array, Params, Source, Span, Status, Trajectory


class HostCallbacks(NamedTuple):
    """What the rollout asks the host, and how many tokens each answer may hold.

    Every callback takes numpy arrays with rows first, the row numbers being the first array, and
    answers for every row; rows that are not asked for get an empty answer. Callbacks never raise.
    """

    act: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(row_B, token_BX, length_B, calls_B) -> (token_BX, length_B, healthy_B) observation."""
    query: Callable[..., np.ndarray]
    """(row_B, wants_B) -> query_BE: what `embed` turns into the key of S_<t."""
    search: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(row_B, wants_B, key_BE, pick_B, room_B) -> (token_BX, length_B, healthy_B) trace; pick_B in
    [0, 1) asks for that random trace, -1 for the nearest; one of more than room_B tokens is left
    out."""
    query_shape: jax.ShapeDtypeStruct
    """Shape and dtype of one row of `query`'s answer."""


class Draws(NamedTuple):
    """Randomness of a boundary, per row: whether to retrieve, and which random trace (-1 none)."""

    wants_B: jax.Array
    pick_B: jax.Array


class RolloutInputs(flax.struct.PyTreeNode):
    """What a rollout is asked for; all of it may change without compiling again."""

    key: Array
    hybrid_B: Array
    """Rows that may retrieve; the others are pure on-policy rollouts."""
    probability: Array
    noise: Array
    temperature: Array
    last_retrieval: Array
    """Last boundary at which retrieval may happen: 1 for whole trajectories, else the last."""
    row_B: Array | None = None
    """Numbers of the rows in their batch, where only a part of it is sampled; None is 0, 1, 2, …"""


class Parts(NamedTuple):
    """The device's side of a step. The scan inlines them; the host driver compiles each."""

    think: Callable[..., tuple[Tape, Span, jax.Array]]
    read: Callable[..., Tape]
    draw: Callable[..., Draws]
    embed: Callable[[jax.Array], jax.Array]


def row_numbers(inputs: RolloutInputs, rows: int) -> jax.Array:
    return jnp.arange(rows, dtype=jnp.int32) if inputs.row_B is None else inputs.row_B


def row_keys(key: jax.Array, inputs: RolloutInputs, rows: int) -> jax.Array:
    """One key per row: what a row draws does not depend on how many rows there are."""
    return jax.vmap(partial(jax.random.fold_in, key))(row_numbers(inputs, rows))


def draw(inputs: RolloutInputs, tape: Tape, boundary: jax.Array) -> Draws:
    """Algorithm 1's coin at boundary t > 0 of each running hybrid row."""
    rows = tape.step_B.shape[0]
    boundary_key = jax.random.fold_in(jax.random.fold_in(inputs.key, 1), boundary)

    def coins(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (3,))

    coin_B, noisy_B, pick_B = jax.vmap(coins)(row_keys(boundary_key, inputs, rows)).T
    running_B = tape.trajectory.status_B == Status.RUNNING
    wants_B = running_B & inputs.hybrid_B & (coin_B < inputs.probability)
    wants_B &= boundary <= inputs.last_retrieval
    return Draws(wants_B, jnp.where(noisy_B < inputs.noise, pick_B, -1.0))


def parts(
    model: ModelSettings,
    rollout: RolloutSettings,
    boundary: Boundary,
    embed: Callable[[jax.Array], jax.Array],
) -> Parts:
    """The device's side of a step for one model; `embed` turns the world's queries into keys."""

    def think(params: Params, inputs: RolloutInputs, tape: Tape) -> tuple[Tape, Span, jax.Array]:
        keys = row_keys(jax.random.fold_in(inputs.key, 0), inputs, tape.step_B.shape[0])
        return decode(
            model,
            params,
            tape,
            keys,
            boundary,
            step_tokens=rollout.step_tokens,
            temperature=inputs.temperature,
        )

    def read(params: Params, tape: Tape, span: Span, healthy_B: jax.Array, source: int) -> Tape:
        tape = jax.lax.cond(
            (span.length_B > 0).any(),
            lambda tape: absorb(
                model, params, tape, span, Source(source), chunk=rollout.absorb_chunk
            ),
            lambda tape: tape,
            tape,
        )
        status_B = jnp.where(healthy_B, tape.trajectory.status_B, Status.MALFORMED)
        return tape.replace(trajectory=tape.trajectory.replace(status_B=status_B))

    return Parts(think, read, draw, embed)


def agent_step(
    parts: Parts,
    ask: Callable[..., Any],
    callbacks: HostCallbacks,
    settings: RolloutSettings,
    params: Params,
    inputs: RolloutInputs,
    tape: Tape,
    index: jax.Array,
    *,
    retrieves: bool,
) -> Tape:
    """Policy step `index` of every running row, its observation, and perhaps a retrieval.

    A row whose call would be one too many ends as OUT_OF_STEPS. `ask(callback, result, *arrays)`
    is the bridge or a plain call. `retrieves` is false for GRPO and evaluation, whose programs hold
    no retrieval at all.
    """
    rows = tape.step_B.shape[0]
    row_B = row_numbers(inputs, rows)

    def answer(tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (
            jax.ShapeDtypeStruct((rows, tokens), jnp.int32),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
            jax.ShapeDtypeStruct((rows,), jnp.bool_),
        )

    tape, step, tag_B = parts.think(params, inputs, tape)
    running_B = tape.trajectory.status_B == Status.RUNNING
    calls_B = running_B & (index < settings.max_calls)
    status_B = jnp.where(running_B & ~calls_B, Status.OUT_OF_STEPS, tape.trajectory.status_B)
    tape = tape.replace(trajectory=tape.trajectory.replace(status_B=status_B))
    token_BX, length_B, healthy_B = ask(
        callbacks.act,
        answer(settings.observation_tokens),
        row_B,
        step.token_BX,
        step.length_B,
        calls_B,
    )
    tape = parts.read(params, tape, Span(token_BX, length_B), healthy_B, int(Source.TOOL))
    tape = tape.replace(step_B=tape.step_B + (tape.trajectory.status_B == Status.RUNNING))
    if not retrieves:
        return tape
    draws = parts.draw(inputs, tape, index + 1)
    query_BE = jax.ShapeDtypeStruct(
        (rows, *callbacks.query_shape.shape), callbacks.query_shape.dtype
    )
    key_BE = parts.embed(ask(callbacks.query, query_BE, row_B, draws.wants_B))
    token_BX, length_B, healthy_B = ask(
        callbacks.search,
        answer(settings.retrieved_tokens),
        row_B,
        draws.wants_B,
        key_BE,
        draws.pick_B,
        tape.trajectory.token_BT.shape[1] - tape.trajectory.length_B,
    )
    tape = parts.read(params, tape, Span(token_BX, length_B), healthy_B, int(Source.RETRIEVED))
    return tape.replace(step_B=tape.step_B + (length_B > 0))


def open_rows(
    model: ModelSettings,
    settings: RolloutSettings,
    params: Params,
    prompt_QX: Span,
    *,
    group_size: int,
) -> Tape:
    """The rows of a rollout behind their prompts, with room for the widest span."""
    return open_tape(
        model,
        params,
        prompt_QX,
        group_size=group_size,
        max_tokens=settings.max_tokens,
        slack=max(settings.step_tokens, settings.observation_tokens, settings.retrieved_tokens),
    )


def rollout(
    parts: Parts,
    callbacks: HostCallbacks,
    mesh: Mesh,
    model: ModelSettings,
    settings: RolloutSettings,
    params: Params,
    inputs: RolloutInputs,
    prompt_QX: Span,
    *,
    group_size: int,
    retrieves: bool,
) -> Trajectory:
    """Q * G trajectories as one program: a scan over agent steps, the host inside it."""
    tape = open_rows(model, settings, params, prompt_QX, group_size=group_size)
    ask = partial(host_call, mesh)

    def step(tape: Tape, index: jax.Array) -> tuple[Tape, None]:
        tape = agent_step(
            parts, ask, callbacks, settings, params, inputs, tape, index, retrieves=retrieves
        )
        return tape, None

    tape, _ = jax.lax.scan(step, tape, jnp.arange(settings.max_calls + 1))
    return tape.trajectory


def rollout_on_host(
    parts: Parts,
    opening: Callable[..., Tape],
    callbacks: HostCallbacks,
    settings: RolloutSettings,
    params: Params,
    inputs: RolloutInputs,
    prompt_QX: Span,
    *,
    retrieves: bool,
) -> Trajectory:
    """The same trajectories from a Python loop; `parts` and `opening` come compiled.

    Every part can be cached on disk and looked at with a debugger; this is the reference that the
    scan is tested against.
    """

    def ask(callback: Callable[..., Any], result: Any, *row_arrays: jax.Array) -> Any:
        return jax.tree.map(jnp.asarray, callback(*(np.asarray(x) for x in row_arrays)))

    tape = opening(params, prompt_QX)
    for index in range(settings.max_calls + 1):
        tape = agent_step(
            parts,
            ask,
            callbacks,
            settings,
            params,
            inputs,
            tape,
            jnp.int32(index),
            retrieves=retrieves,
        )
    return tape.trajectory
