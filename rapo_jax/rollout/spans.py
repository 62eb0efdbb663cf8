"""The two primitives that build a tape: `absorb` reads tokens, `decode` samples until a boundary.

Both keep the KV cache, so nothing is ever re-tokenised or prefilled twice.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings
from rapo_jax.model.decoding import Cache, empty_cache, extend, prefill
from rapo_jax.model.sampling import sample
from rapo_jax.model.transformer import unembed
from rapo_jax.types import Params, Source, Span, Status, Trajectory


class Boundary(NamedTuple):
    """Where a step ends, on the bytes of the sampled tokens rather than on single ids.

    `next_state_AV` is the byte-level automaton over the closing tags compiled into a token table;
    states from `first_accept` on mean that closing tag number `state - first_accept` was completed.
    """

    next_state_AV: jax.Array
    first_accept: int
    answer_tag: int
    eos_W: jax.Array


class Tape(flax.struct.PyTreeNode):
    """A batch of rows while it is being written."""

    trajectory: Trajectory
    hidden_BD: jax.Array
    """Final hidden state of each row's last token: the next token's logits are its unembedding."""
    cache: Cache
    step_B: jax.Array
    """Step that the next token belongs to."""

    @property
    def running_B(self) -> jax.Array:
        return self.trajectory.status_B == Status.RUNNING

    def with_status(self, status_B: jax.Array) -> Tape:
        return self.replace(trajectory=self.trajectory.replace(status_B=status_B))


def _append(
    tape: Tape,
    span: Span,
    source: Source,
    logp_BX: jax.Array | None = None,
    entropy_BX: jax.Array | None = None,
) -> Trajectory:
    """Writes a span behind each row. Padding keeps the step of the row's last token."""
    old = tape.trajectory
    zero_BX = jnp.zeros(span.token_BX.shape, jnp.float32)
    slot_BT = jnp.arange(old.token_BT.shape[1]) - old.length_B[:, None]
    fresh_BT = (slot_BT >= 0) & (slot_BT < span.length_B[:, None])
    index_BT = jnp.clip(slot_BT, 0, span.token_BX.shape[1] - 1)

    def put(old_BT: jax.Array, new_BX: jax.Array) -> jax.Array:
        return jnp.where(fresh_BT, jnp.take_along_axis(new_BX, index_BT, axis=1), old_BT)

    later_B = jnp.where(span.length_B > 0, tape.step_B, old.step_BT[:, -1])
    return old.replace(
        token_BT=put(old.token_BT, span.token_BX),
        source_BT=put(old.source_BT, jnp.full_like(span.token_BX, source)),
        step_BT=jnp.where(slot_BT >= 0, later_B[:, None], old.step_BT),
        logp_BT=put(old.logp_BT, zero_BX if logp_BX is None else logp_BX),
        entropy_BT=put(old.entropy_BT, zero_BX if entropy_BX is None else entropy_BX),
        length_B=old.length_B + span.length_B,
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
    last_Q11 = (prompt_QX.length_B - 1)[:, None, None]
    hidden_QD = jnp.take_along_axis(hidden_QXD, last_Q11, axis=1)[:, 0]
    each = partial(jnp.repeat, repeats=group_size, axis=0)
    blank = partial(jnp.zeros, (Q * group_size, max_tokens))
    zero_B = jnp.zeros((Q * group_size,), jnp.int32)
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
    return tape.replace(trajectory=_append(tape, prompt, Source.PROMPT))


def absorb(
    model: ModelSettings, params: Params, tape: Tape, span: Span, source: Source, *, chunk: int
) -> Tape:
    """Reads tokens that the policy did not write; rows with an empty span stay as they are.

    A span that does not fit ends its row as OUT_OF_TOKENS and is not read. One of more than `chunk`
    slots is read so many at a time, as far as any row's tokens go: there are no scores and
    activations of more. Where `chunk` does not divide the span, the last chunk begins earlier and
    reads some slots twice: no slot behind the span is ever written.
    """
    start_B, slots = tape.trajectory.length_B, span.token_BX.shape[1]
    fits_B = start_B + span.length_B <= tape.trajectory.token_BT.shape[1]
    length_B = jnp.where(fits_B, span.length_B, 0)
    longest = length_B.max()

    def read(at: jax.Array, tape: Tape, token_BX: jax.Array) -> Tape:
        """Reads the slots from `at` on; rows without a token there keep their hidden state."""
        hidden_BXD, cache = extend(model, params, tape.cache, token_BX, start_B + at)
        last_B = jnp.minimum(length_B - at, token_BX.shape[1]) - 1
        last_BD = jnp.take_along_axis(hidden_BXD, jnp.maximum(last_B, 0)[:, None, None], axis=1)
        hidden_BD = jnp.where((last_B >= 0)[:, None], last_BD[:, 0], tape.hidden_BD)
        return tape.replace(hidden_BD=hidden_BD, cache=cache)

    def unread(carry):
        # The constant bound follows from the other; a plan reads there how often the loop may turn.
        return (carry[0] < -(-slots // chunk)) & (carry[0] * chunk < longest)

    def read_chunk(carry):
        index, tape = carry
        at = jnp.minimum(index * chunk, slots - chunk)
        part_BX = jax.lax.dynamic_slice_in_dim(span.token_BX, at, chunk, axis=1)
        return index + 1, read(at, tape, part_BX)

    if slots <= chunk:
        tape = read(jnp.int32(0), tape, span.token_BX)
    else:
        tape = jax.lax.while_loop(unread, read_chunk, (jnp.int32(0), tape))[1]
    tape = tape.replace(trajectory=_append(tape, Span(span.token_BX, length_B), source))
    return tape.with_status(jnp.where(fits_B, tape.trajectory.status_B, Status.OUT_OF_TOKENS))


class _Decoding(NamedTuple):
    """A step while it is being sampled: what the loop over its tokens carries."""

    tick: jax.Array
    active_B: jax.Array
    length_B: jax.Array
    state_B: jax.Array  # of the boundary's automaton
    eos_B: jax.Array
    hidden_BD: jax.Array
    cache: Cache
    token_BX: jax.Array
    logp_BX: jax.Array
    entropy_BX: jax.Array


def _decode_token(
    model: ModelSettings,
    params: Params,
    boundary: Boundary,
    key_B: jax.Array,
    start_B: jax.Array,
    max_tokens: int,
    temperature: jax.Array,
    now: _Decoding,
) -> _Decoding:
    """Samples one token of every active row and reads it into the cache."""
    active_B = now.active_B
    slot_B = start_B + now.length_B
    logits_BV = unembed(model, params, now.hidden_BD)
    keys = jax.vmap(jax.random.fold_in)(key_B, slot_B)
    drawn = sample(logits_BV, keys, temperature=temperature)
    token_B = jnp.where(active_B, drawn.token_B, 0)
    hidden_BXD, cache = extend(model, params, now.cache, token_B[:, None], slot_B)
    state_B = boundary.next_state_AV[now.state_B, token_B].astype(jnp.int32)
    state_B = jnp.where(active_B, state_B, now.state_B)
    eos_B = active_B & jnp.isin(token_B, boundary.eos_W)
    ended_B = eos_B | (state_B >= boundary.first_accept) | (slot_B + 1 >= max_tokens)

    def column(table_BX: jax.Array, value_B: jax.Array) -> jax.Array:
        value_B = jnp.where(active_B, value_B, 0)
        return jax.lax.dynamic_update_index_in_dim(table_BX, value_B, now.tick, axis=1)

    return _Decoding(
        now.tick + 1,
        active_B & ~ended_B,
        now.length_B + active_B,
        state_B,
        now.eos_B | eos_B,
        jnp.where(active_B[:, None], hidden_BXD[:, 0], now.hidden_BD),
        cache,
        column(now.token_BX, token_B),
        column(now.logp_BX, drawn.logp_B),
        column(now.entropy_BX, drawn.entropy_B),
    )


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
    start_B, running_B = tape.trajectory.length_B, tape.running_B
    token = partial(_decode_token, model, params, boundary, key_B, start_B, T, temperature)
    zero_B = jnp.zeros((B,), jnp.int32)
    zero_BX = jnp.zeros((B, step_tokens), jnp.float32)
    done = jax.lax.while_loop(
        lambda now: now.active_B.any() & (now.tick < step_tokens),
        token,
        _Decoding(
            tick=jnp.int32(0),
            active_B=running_B & (start_B < T),
            length_B=zero_B,
            state_B=zero_B,
            eos_B=jnp.zeros((B,), bool),
            hidden_BD=tape.hidden_BD,
            cache=tape.cache,
            token_BX=zero_BX.astype(jnp.int32),
            logp_BX=zero_BX,
            entropy_BX=zero_BX,
        ),
    )
    tag_B = jnp.where(
        done.state_B >= boundary.first_accept, done.state_B - boundary.first_accept, -1
    )
    cut_short_B = jnp.where(done.eos_B, Status.STOPPED, Status.OUT_OF_TOKENS)
    ending_B = jnp.where(tag_B >= 0, Status.RUNNING, cut_short_B)
    ending_B = jnp.where(tag_B == boundary.answer_tag, Status.ANSWERED, ending_B)
    step = Span(done.token_BX, done.length_B)
    trajectory = _append(tape, step, Source.POLICY, done.logp_BX, done.entropy_BX)
    tape = tape.replace(trajectory=trajectory, hidden_BD=done.hidden_BD, cache=done.cache)
    status_B = jnp.where(running_B, ending_B, trajectory.status_B).astype(jnp.int32)
    return tape.with_status(status_B), step, tag_B
