"""The two primitives that build a tape: `absorb` reads tokens, `decode` samples until a boundary.

Both keep the KV cache, so nothing is ever re-tokenised or prefilled twice.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.decoding import Cache, empty_cache, extend, prefill
from rapo_jax.model.sampling import sample
from rapo_jax.model.transformer import unembed
from rapo_jax.rollout.reading import Read, read_span
from rapo_jax.types import Params, Source, Span, Status, Trajectory


class Boundary(NamedTuple):
    """Where a step ends, on the bytes of the sampled tokens rather than on single ids.

    `next_state_KV` is the byte-level automaton over the closing tags compiled into a token table;
    states from `first_accept` on mean that closing tag number `state - first_accept` was completed.
    """

    next_state_KV: jax.Array
    first_accept: int
    answer_tag: int
    eos_E: jax.Array


class Tape(flax.struct.PyTreeNode):
    """A batch of rows while it is being written."""

    trajectory: Trajectory
    hidden_BD: jax.Array
    """Final hidden state of each row's last token: the next token's logits are its unembedding."""
    cache: Cache
    step_B: jax.Array
    """Step that the next token belongs to."""


def _place(old_BT: jax.Array, new_BX: jax.Array, start_B: jax.Array, length_B: jax.Array):
    slot_BT = jnp.arange(old_BT.shape[1]) - start_B[:, None]
    fresh_BT = (slot_BT >= 0) & (slot_BT < length_B[:, None])
    index_BT = jnp.clip(slot_BT, 0, new_BX.shape[1] - 1)
    return jnp.where(fresh_BT, jnp.take_along_axis(new_BX, index_BT, axis=1), old_BT)


def _append(
    tape: Tape, span: Span, source: Source, logp_BX: jax.Array, entropy_BX: jax.Array
) -> Trajectory:
    """Writes a span behind each row. Padding keeps the step of the row's last token."""
    old = tape.trajectory
    length_B = old.length_B + span.length_B
    step_BT = jnp.where(
        jnp.arange(old.token_BT.shape[1]) >= old.length_B[:, None],
        jnp.where(span.length_B > 0, tape.step_B, old.step_BT[:, -1])[:, None],
        old.step_BT,
    )

    def put(old_BT: jax.Array, new_BX: jax.Array) -> jax.Array:
        return _place(old_BT, new_BX, old.length_B, span.length_B)

    return old.replace(
        token_BT=put(old.token_BT, span.token_BX),
        source_BT=put(old.source_BT, jnp.full_like(span.token_BX, source)),
        step_BT=step_BT,
        logp_BT=put(old.logp_BT, logp_BX),
        entropy_BT=put(old.entropy_BT, entropy_BX),
        length_B=length_B,
    )


def open_tape(
    model: ModelSettings,
    params: Params,
    prompt_QX: Span,
    *,
    group_size: int,
    max_tokens: int,
    slack: int,
) -> Tape:
    """Prefills each prompt once and lays out Q * G rows of `max_tokens` slots behind it.

    `slack` is the widest span ever absorbed or decoded: the cache is that much longer than a row,
    because a span is written whole even where only part of it is valid.
    """
    Q, X = prompt_QX.token_BX.shape
    cache = empty_cache(model, rows=Q, slots=max_tokens + max(slack, X))
    hidden_QXD, cache = prefill(model, params, cache, prompt_QX.token_BX)
    last = (prompt_QX.length_B - 1)[:, None, None]
    hidden_QD = jnp.take_along_axis(hidden_QXD, last, axis=1)[:, 0]
    rows = Q * group_size

    def blank(dtype: type) -> jax.Array:
        return jnp.zeros((rows, max_tokens), dtype)

    def each(x: jax.Array) -> jax.Array:
        return jnp.repeat(x, group_size, axis=0)

    zero_B = jnp.zeros((rows,), jnp.int32)
    tape = Tape(
        trajectory=Trajectory(
            token_BT=blank(jnp.int32),
            source_BT=blank(jnp.int32),
            step_BT=blank(jnp.int32),
            logp_BT=blank(jnp.float32),
            entropy_BT=blank(jnp.float32),
            status_B=zero_B,
            length_B=zero_B,
        ),
        hidden_BD=each(hidden_QD),
        cache=jax.tree.map(each, cache),
        step_B=zero_B,
    )
    prompt = Span(each(prompt_QX.token_BX), each(prompt_QX.length_B))
    nothing = jnp.zeros(prompt.token_BX.shape, jnp.float32)
    return tape.replace(trajectory=_append(tape, prompt, Source.PROMPT, nothing, nothing))


def absorb(
    model: ModelSettings, params: Params, tape: Tape, span: Span, source: Source, *, chunk: int
) -> Tape:
    """Reads tokens that the policy did not write; rows with an empty span stay as they are.

    A span that does not fit ends its row as OUT_OF_TOKENS and is not read. One of more than `chunk`
    slots is read so many at a time, as far as any row's tokens go.
    """
    start_B = tape.trajectory.length_B
    fits_B = start_B + span.length_B <= tape.trajectory.token_BT.shape[1]
    length_B = jnp.where(fits_B, span.length_B, 0)
    before = Read(tape.hidden_BD, tape.cache)
    found = read_span(model, params, before, span.token_BX, start_B, length_B, chunk=chunk)
    nothing_BX = jnp.zeros(span.token_BX.shape, jnp.float32)
    trajectory = _append(tape, Span(span.token_BX, length_B), source, nothing_BX, nothing_BX)
    status_B = jnp.where(fits_B, trajectory.status_B, Status.OUT_OF_TOKENS)
    trajectory = trajectory.replace(status_B=status_B)
    return tape.replace(trajectory=trajectory, hidden_BD=found.hidden_BD, cache=found.cache)


def decode(
    model: ModelSettings,
    params: Params,
    tape: Tape,
    key_B: jax.Array,
    boundary: Boundary,
    *,
    step_tokens: int,
    temperature: jax.Array,
) -> tuple[Tape, Span, jax.Array]:
    """Samples one agent step of every RUNNING row, each until its own boundary.

    Row b's token at slot t is drawn with `fold_in(key_B[b], t)`: its tape depends on its own key
    and history alone. Returns the tape, the step as a span, and which closing tag ended it
    (-1 none). Rows that answered, emitted end-of-sequence or ran out of tokens leave RUNNING.
    """
    B, T = tape.trajectory.token_BT.shape
    start_B = tape.trajectory.length_B
    running_B = tape.trajectory.status_B == Status.RUNNING

    def unfinished(carry):
        return carry["active_B"].any() & (carry["tick"] < step_tokens)

    def tick(carry):
        at = carry["tick"]
        active_B = carry["active_B"]
        slot_B = start_B + carry["length_B"]
        logits_BV = unembed(model, params, carry["hidden_BD"])
        keys = jax.vmap(jax.random.fold_in)(key_B, slot_B)
        drawn = sample(logits_BV, keys, temperature=temperature)
        token_B = jnp.where(active_B, drawn.token_B, 0)
        hidden_BXD, cache = extend(model, params, carry["cache"], token_B[:, None], slot_B)
        state_B = boundary.next_state_KV[carry["state_B"], token_B].astype(jnp.int32)
        state_B = jnp.where(active_B, state_B, carry["state_B"])
        eos_B = active_B & jnp.isin(token_B, boundary.eos_E)
        ended_B = eos_B | (state_B >= boundary.first_accept) | (slot_B + 1 >= T)

        def column(buffer_BX: jax.Array, value_B: jax.Array) -> jax.Array:
            value_B = jnp.where(active_B, value_B, 0)
            return jax.lax.dynamic_update_index_in_dim(buffer_BX, value_B, at, axis=1)

        return {
            "tick": at + 1,
            "active_B": active_B & ~ended_B,
            "length_B": carry["length_B"] + active_B,
            "state_B": state_B,
            "eos_B": carry["eos_B"] | eos_B,
            "hidden_BD": jnp.where(active_B[:, None], hidden_BXD[:, 0], carry["hidden_BD"]),
            "cache": cache,
            "token_BX": column(carry["token_BX"], token_B),
            "logp_BX": column(carry["logp_BX"], drawn.logp_B),
            "entropy_BX": column(carry["entropy_BX"], drawn.entropy_B),
        }

    zero_BX = jnp.zeros((B, step_tokens), jnp.float32)
    done = jax.lax.while_loop(
        unfinished,
        tick,
        {
            "tick": jnp.int32(0),
            "active_B": running_B & (start_B < T),
            "length_B": jnp.zeros((B,), jnp.int32),
            "state_B": jnp.zeros((B,), jnp.int32),
            "eos_B": jnp.zeros((B,), bool),
            "hidden_BD": tape.hidden_BD,
            "cache": tape.cache,
            "token_BX": zero_BX.astype(jnp.int32),
            "logp_BX": zero_BX,
            "entropy_BX": zero_BX,
        },
    )
    tag_B = jnp.where(
        done["state_B"] >= boundary.first_accept, done["state_B"] - boundary.first_accept, -1
    )
    ending_B = jnp.where(
        tag_B == boundary.answer_tag,
        Status.ANSWERED,
        jnp.where(
            tag_B >= 0,
            Status.RUNNING,
            jnp.where(done["eos_B"], Status.STOPPED, Status.OUT_OF_TOKENS),
        ),
    )
    span = Span(done["token_BX"], done["length_B"])
    trajectory = _append(tape, span, Source.POLICY, done["logp_BX"], done["entropy_BX"])
    status_B = jnp.where(running_B, ending_B, trajectory.status_B).astype(jnp.int32)
    tape = tape.replace(
        trajectory=trajectory.replace(status_B=status_B),
        hidden_BD=done["hidden_BD"],
        cache=done["cache"],
    )
    return tape, span, tag_B
