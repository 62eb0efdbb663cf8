"""The hybrid-policy rollout (paper, Algorithm 1): think -> act -> (perhaps) retrieve -> think ...

One pure function, `agent_step`, is a step of every row. `rollout` repeats it: by `scan_steps` in a
program that calls the host through the bridge, or by `loop_steps` from Python with its parts
compiled one by one. Both write identical tapes for the same key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.rollout.spans import Boundary, Tape, absorb, decode, open_tape
from rapo_jax.types import Array, Params, Source, Span, Status, Trajectory

Answer = TypeVar("Answer")
CallHost = Callable[..., Answer]
"""(callback, shapes of its answer, *row arrays) -> answer: the bridge, or `call_directly`."""


class HostCallbacks(NamedTuple):
    """The host's side of a step.

    Every callback takes numpy arrays with rows first, the row numbers being the first array, and
    answers for every row; rows that are not asked for get an empty answer. Callbacks never raise.
    """

    act: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(row_B, token_BX, length_B, calls_B) -> (token_BX, length_B, healthy_B) observation."""
    query: Callable[..., np.ndarray]
    """(row_B, wants_B) -> query_BX: what `embed` turns into the key of S_<t."""
    search: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(row_B, wants_B, key_BE, pick_B, room_B) -> (token_BX, length_B, healthy_B) trace; pick_B in
    [0, 1) asks for that random trace, -1 for the nearest; one of more than room_B tokens is left
    out."""
    query_shape: jax.ShapeDtypeStruct
    """Shape and dtype of one row of `query`'s answer."""


class RolloutInputs(flax.struct.PyTreeNode):
    """What a rollout is asked for; all of it may change without compiling again."""

    key: Array
    hybrid_B: Array  # rows that may retrieve; the others are pure on-policy rollouts
    probability: Array  # of retrieving at a step boundary of a hybrid rollout
    noise: Array  # share of retrievals that bring a random trace
    temperature: Array
    last_retrieval: Array  # last boundary of a retrieval: 1 for whole trajectories
    row_B: Array | None = None  # numbers of a chunk's rows in their batch; None is 0, 1, 2, …


class Parts(NamedTuple):
    """The device's side of a step. The scan inlines them; the Python driver compiles each."""

    open: Callable[[Params, Span, int], Tape]
    """(params, prompts, group_size): the rows behind their prompts."""
    think: Callable[[Params, RolloutInputs, Tape], tuple[Tape, Span, jax.Array]]
    read: Callable[[Params, Tape, Span, jax.Array, int], Tape]
    draw: Callable[[RolloutInputs, Tape, jax.Array], tuple[jax.Array, jax.Array]]
    embed: Callable[[jax.Array], jax.Array]


def row_numbers(inputs: RolloutInputs, rows: int) -> jax.Array:
    return jnp.arange(rows, dtype=jnp.int32) if inputs.row_B is None else inputs.row_B


def row_keys(key: jax.Array, inputs: RolloutInputs, rows: int) -> jax.Array:
    """One key per row: what a row draws does not depend on how many rows there are."""
    return jax.vmap(partial(jax.random.fold_in, key))(row_numbers(inputs, rows))


def draw(inputs: RolloutInputs, tape: Tape, boundary: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Algorithm 1's coin at boundary t > 0 of each running hybrid row.

    Returns wants_B, whether to retrieve, and pick_B, which random trace in [0, 1), -1 for none.
    """
    boundary_key = jax.random.fold_in(jax.random.fold_in(inputs.key, 1), boundary)
    key_B = row_keys(boundary_key, inputs, tape.step_B.shape[0])
    coin_B, noisy_B, pick_B = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(key_B).T
    wants_B = tape.running_B & inputs.hybrid_B & (coin_B < inputs.probability)
    wants_B &= boundary <= inputs.last_retrieval
    return wants_B, jnp.where(noisy_B < inputs.noise, pick_B, -1.0)


def parts(
    model: ModelSettings,
    settings: RolloutSettings,
    boundary: Boundary,
    embed: Callable[[jax.Array], jax.Array],
) -> Parts:
    """The device's side of a step for one model; `embed` turns the host's queries into keys."""
    s = settings

    def open_rows(params: Params, prompt_QX: Span, group_size: int) -> Tape:
        slack = max(s.step_tokens, s.observation_tokens, s.retrieved_tokens)
        sizes = {"group_size": group_size, "max_tokens": s.max_tokens, "slack": slack}
        return open_tape(model, params, prompt_QX, **sizes)

    def think(params: Params, inputs: RolloutInputs, tape: Tape) -> tuple[Tape, Span, jax.Array]:
        key_B = row_keys(jax.random.fold_in(inputs.key, 0), inputs, tape.step_B.shape[0])
        how = {"step_tokens": s.step_tokens, "temperature": inputs.temperature}
        return decode(model, params, tape, key_B, boundary, **how)

    def read(params: Params, tape: Tape, span: Span, healthy_B: jax.Array, source: int) -> Tape:
        def absorbed(tape: Tape) -> Tape:
            return absorb(model, params, tape, span, Source(source), chunk=s.absorb_chunk)

        tape = jax.lax.cond((span.length_B > 0).any(), absorbed, lambda tape: tape, tape)
        return tape.with_status(jnp.where(healthy_B, tape.trajectory.status_B, Status.MALFORMED))

    return Parts(open_rows, think, read, draw, embed)


def agent_step(
    parts: Parts,
    call_host: CallHost,
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

    A row whose call would be one too many ends as OUT_OF_STEPS. `retrieves` is false for GRPO and
    evaluation, whose programs hold no retrieval at all.
    """
    rows = tape.step_B.shape[0]
    row_B = row_numbers(inputs, rows)

    def span_shapes(tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        shapes = (((rows, tokens), jnp.int32), ((rows,), jnp.int32), ((rows,), jnp.bool_))
        return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)

    tape, step, _ = parts.think(params, inputs, tape)
    calls_B = tape.running_B & (index < settings.max_calls)
    over_B = tape.running_B & ~calls_B
    tape = tape.with_status(jnp.where(over_B, Status.OUT_OF_STEPS, tape.trajectory.status_B))
    shapes = span_shapes(settings.observation_tokens)
    token_BX, length_B, healthy_B = call_host(
        callbacks.act, shapes, row_B, step.token_BX, step.length_B, calls_B
    )
    tape = parts.read(params, tape, Span(token_BX, length_B), healthy_B, int(Source.TOOL))
    tape = tape.replace(step_B=tape.step_B + tape.running_B)
    if not retrieves:
        return tape
    wants_B, pick_B = parts.draw(inputs, tape, index + 1)
    query = callbacks.query_shape
    shape = jax.ShapeDtypeStruct((rows, *query.shape), query.dtype)
    key_BE = parts.embed(call_host(callbacks.query, shape, row_B, wants_B))
    room_B = tape.trajectory.token_BT.shape[1] - tape.trajectory.length_B
    shapes = span_shapes(settings.retrieved_tokens)
    token_BX, length_B, healthy_B = call_host(
        callbacks.search, shapes, row_B, wants_B, key_BE, pick_B, room_B
    )
    tape = parts.read(params, tape, Span(token_BX, length_B), healthy_B, int(Source.RETRIEVED))
    return tape.replace(step_B=tape.step_B + (length_B > 0))


Step = Callable[[Tape, jax.Array], Tape]


def scan_steps(step: Step, tape: Tape, count: int) -> Tape:
    """Repeats a step inside a program."""
    return jax.lax.scan(lambda tape, index: (step(tape, index), None), tape, jnp.arange(count))[0]


def loop_steps(step: Step, tape: Tape, count: int) -> Tape:
    """Repeats a step from Python: easy to debug, and the reference of the scan."""
    for index in range(count):
        tape = step(tape, jnp.int32(index))
    return tape


def call_directly(
    callback: Callable[..., Answer], shapes: Answer, *row_arrays: jax.Array
) -> Answer:
    """Calls a host callback from Python, outside any program."""
    return jax.tree.map(jnp.asarray, callback(*map(np.asarray, row_arrays)))


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
    repeat: Callable[[Step, Tape, int], Tape],
) -> Trajectory:
    """Q * G trajectories; `repeat` is `scan_steps` inside a program, or `loop_steps`."""
    fixed = (parts, call_host, callbacks, settings, params, inputs)
    step = partial(agent_step, *fixed, retrieves=retrieves)
    tape = parts.open(params, prompt_QX, group_size)
    return repeat(step, tape, settings.max_calls + 1).trajectory
