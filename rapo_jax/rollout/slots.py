"""The state of a rollout, and the device's part of it: begin rows, think, read.

B rows (rollouts) of a shard pass through U slots. A slot holds the KV cache of one row from its
prompt to its end, and then takes the next row. Each is in a phase of its own: some sample while
others wait for the host. What a row draws depends on its number and position alone, so that its
tape does not depend on its slot, on the other rows, or on how long the host took.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.model.decoding import Cache, empty_cache, extend, prefill
from rapo_jax.model.sampling import sample
from rapo_jax.model.transformer import unembed
from rapo_jax.types import Array, Params, Source, Span, Status, Trajectory


class Phase(enum.IntEnum):
    """What a slot does."""

    FREE = 0
    THINKING = 1  # samples tokens
    CALLING = 2  # its step ended in a call that the host does not know yet
    WAITING = 3  # for the host's answer


CALLING_SHARE = 64
"""The host is called once 1 in this many of the slots that could sample has a call instead."""
POLL_TICKS = 16
"""While rows wait, the host is asked for answers after so many sampled tokens of a slot."""


class Boundary(NamedTuple):
    """Where a step ends, on the bytes of the sampled tokens rather than on single ids.

    `next_state_AV` is the byte-level automaton over the closing tags compiled into a token table;
    states from `first_accept` on mean that closing tag number `state - first_accept` was completed.
    """

    next_state_AV: jax.Array
    first_accept: int
    answer_tag: int
    eos_W: jax.Array


class RolloutInputs(flax.struct.PyTreeNode):
    """What a rollout is asked for; all of it may change without compiling again."""

    key: Array
    row_B: Array  # number of each row among those of all shards
    hybrid_B: Array  # rows that may retrieve; the others are pure on-policy rollouts
    probability: Array  # of retrieving at a step boundary of a hybrid rollout
    noise: Array  # share of retrievals that bring a random trace
    temperature: Array
    last_retrieval: Array  # last boundary of a retrieval: 1 for whole trajectories


class Counts(flax.struct.PyTreeNode):
    """Counts of a shard's rollout; a slot-tick is a slot while the model computes one token."""

    ticks: Array
    slot_ticks: Array
    sampled: Array  # slot-ticks that sampled a token of a rollout
    waiting: Array  # slot-ticks of rows that waited for the host
    absorbed: Array  # tokens of tools and traces
    host_calls: Array


class Slots(flax.struct.PyTreeNode):
    """The rows of a shard while they are being written; the cache and hidden states of U of them.

    Tapes have some positions more than a row may have, for the chunks that are written whole.
    """

    trajectory: Trajectory
    prompts: Prompts
    left_1: Array  # rows that have not begun: the last ones
    row_U: Array
    phase_U: Array
    length_U: Array  # tokens of the row so far
    begin_U: Array  # position of the current step's first token
    step_U: Array  # step that the next token belongs to
    calls_U: Array  # policy steps that ended in a call
    state_U: Array  # of the boundary's automaton
    hidden_UD: Array  # of each row's last token: the next one's logits are its unembedding
    cache: Cache
    counts: Counts

    @property
    def unfinished(self) -> Array:
        return (self.phase_U != Phase.FREE).any() | (self.left_1 > 0).any()

    @property
    def rows(self) -> int:
        return self.trajectory.status_B.shape[0]

    def has(self, phase: Phase) -> Array:
        return self.phase_U == phase


class Prompts(flax.struct.PyTreeNode):
    """The prompts of Q questions, read once each."""

    length_Q: Array
    hidden_QD: Array  # of the last token
    cache: Cache


def open_slots(
    model: ModelSettings,
    settings: RolloutSettings,
    params: Params,
    prompt_QX: Span,
    *,
    slots: int,
    group_size: int,
) -> Slots:
    """Reads each prompt once and lays out Q * G tapes behind them; no row has begun.

    There are at most `slots` slots; 0 means as many as rows.
    """
    Q, X = prompt_QX.token_BX.shape
    B = Q * group_size
    U = min(slots, B) if slots else B
    positions = settings.max_tokens + chunk_of(settings)
    hidden_QXD, cache = prefill(model, params, prompt_QX.token_BX)
    last_Q11 = (prompt_QX.length_B - 1)[:, None, None]
    hidden_QD = jnp.take_along_axis(hidden_QXD, last_Q11, axis=1)[:, 0]
    blank = partial(jnp.zeros, (B, positions))
    valid_QX = jnp.arange(X) < prompt_QX.length_B[:, None]
    each = partial(jnp.repeat, repeats=group_size, axis=0)
    token_BX = each(jnp.where(valid_QX, prompt_QX.token_BX, 0))
    source_BX = each(jnp.where(valid_QX, Source.PROMPT, Source.PAD))
    zero_B, zero_U, zero_1 = (jnp.zeros((n,), jnp.int32) for n in (B, U, 1))
    return Slots(
        trajectory=Trajectory(
            token_BT=blank(jnp.int32).at[:, :X].set(token_BX),
            source_BT=blank(jnp.int32).at[:, :X].set(source_BX),
            step_BT=blank(jnp.int32),
            logp_BT=blank(jnp.float32),
            entropy_BT=blank(jnp.float32),
            status_B=zero_B,
            length_B=zero_B,
        ),
        prompts=Prompts(prompt_QX.length_B, hidden_QD, cache),
        left_1=zero_1 + B,
        row_U=zero_U,
        phase_U=zero_U,
        length_U=zero_U,
        begin_U=zero_U,
        step_U=zero_U,
        calls_U=zero_U,
        state_U=zero_U,
        hidden_UD=jnp.zeros((U, hidden_QD.shape[1]), hidden_QD.dtype),
        cache=empty_cache(model, rows=U, positions=positions),
        counts=Counts(*[zero_1] * 6),
    )


def chunk_of(settings: RolloutSettings) -> int:
    """Tokens that `read` reads at a time: `absorb_chunk`, or the longest text if that is less."""
    return min(settings.absorb_chunk, settings.observation_tokens + settings.retrieved_tokens)


def closed(settings: RolloutSettings, slots: Slots) -> Trajectory:
    """The finished tapes. Padding has the step of the row's last token."""
    old, T = slots.trajectory, settings.max_tokens
    last_B1 = old.length_B[:, None] - 1
    last_step_B1 = jnp.take_along_axis(old.step_BT, last_B1, axis=1)
    step_BT = jnp.where(jnp.arange(T) > last_B1, last_step_B1, old.step_BT[:, :T])
    return Trajectory(
        old.token_BT[:, :T],
        old.source_BT[:, :T],
        step_BT,
        old.logp_BT[:, :T],
        old.entropy_BT[:, :T],
        old.status_B,
        old.length_B,
    )


def fill(slots: Slots) -> Slots:
    """Gives the next rows to the free slots: each gets a copy of its prompt's cache."""
    group_size = slots.rows // len(slots.prompts.length_Q)

    def unfilled(slots: Slots) -> Array:
        return slots.has(Phase.FREE).any() & (slots.left_1[0] > 0)

    def begin_row(slots: Slots) -> Slots:
        u, row = jnp.argmax(slots.has(Phase.FREE)), slots.rows - slots.left_1[0]
        q = row // group_size
        length = slots.prompts.length_Q[q]

        def copy(old: Array, prompt: Array) -> Array:
            part = jax.lax.dynamic_index_in_dim(prompt, q, keepdims=True)
            return jax.lax.dynamic_update_slice(old, part, (u, *[0] * (old.ndim - 1)))

        return slots.replace(
            left_1=slots.left_1 - 1,
            row_U=slots.row_U.at[u].set(row),
            phase_U=slots.phase_U.at[u].set(Phase.THINKING),
            length_U=slots.length_U.at[u].set(length),
            begin_U=slots.begin_U.at[u].set(length),
            step_U=slots.step_U.at[u].set(0),
            calls_U=slots.calls_U.at[u].set(0),
            state_U=slots.state_U.at[u].set(0),
            hidden_UD=slots.hidden_UD.at[u].set(slots.prompts.hidden_QD[q]),
            cache=jax.tree.map(copy, slots.cache, slots.prompts.cache),
        )

    return jax.lax.while_loop(unfilled, begin_row, slots)


def end_rows(slots: Slots, ended_U: Array, status_U: Array) -> Slots:
    """Frees the slots of rows that ended."""
    row_U = jnp.where(ended_U, slots.row_U, slots.rows)
    old = slots.trajectory
    return slots.replace(
        trajectory=old.replace(
            status_B=old.status_B.at[row_U].set(status_U, mode="drop"),
            length_B=old.length_B.at[row_U].set(slots.length_U, mode="drop"),
        ),
        phase_U=jnp.where(ended_U, Phase.FREE, slots.phase_U),
        length_U=jnp.where(ended_U, 0, slots.length_U),
    )


def row_keys(key: Array, inputs: RolloutInputs, slots: Slots) -> Array:
    """One key per slot, that of its row: a row draws the same in any slot, of any number."""
    return jax.vmap(partial(jax.random.fold_in, key))(inputs.row_B[slots.row_U])


def think(
    model: ModelSettings,
    settings: RolloutSettings,
    boundary: Boundary,
    params: Params,
    inputs: RolloutInputs,
    slots: Slots,
) -> Slots:
    """Samples until the host is needed; rows that end make room for the next ones."""

    def needless(carry: tuple[Array, Slots]) -> Array:
        """Whether enough slots can go on without the host."""
        ticks, now = carry
        thinking, calling = now.has(Phase.THINKING).sum(), now.has(Phase.CALLING).sum()
        late = now.has(Phase.WAITING).any() & (ticks >= POLL_TICKS)
        return (thinking > 0) & (calling * CALLING_SHARE < thinking + calling) & ~late

    def tick(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        ticks, now = carry
        return ticks + 1, fill(think_token(model, settings, boundary, params, inputs, now))

    return jax.lax.while_loop(needless, tick, (jnp.int32(0), fill(slots)))[1]


def think_token(
    model: ModelSettings,
    settings: RolloutSettings,
    boundary: Boundary,
    params: Params,
    inputs: RolloutInputs,
    slots: Slots,
) -> Slots:
    """Samples one token in every thinking slot and reads it into the cache.

    Row b's token at position t is drawn with `fold_in(key of row b, t)`. A step ends with a closing
    tag; one that ends otherwise ends its row, and so does a call beyond `max_calls`.
    """
    s, thinking_U, position_U = settings, slots.has(Phase.THINKING), slots.length_U
    key_U = row_keys(jax.random.fold_in(inputs.key, 0), inputs, slots)
    key_U = jax.vmap(jax.random.fold_in)(key_U, position_U)
    drawn = sample(unembed(model, params, slots.hidden_UD), key_U, temperature=inputs.temperature)
    token_U = jnp.where(thinking_U, drawn.token_B, 0)
    hidden_UXD, cache = extend(
        model,
        params,
        slots.cache,
        token_U[:, None],
        position_U,
        first=0,
        longest=jnp.where(thinking_U, position_U + 1, 0).max(),
    )
    state_U = boundary.next_state_AV[slots.state_U, token_U].astype(jnp.int32)
    accepted_U = state_U >= boundary.first_accept
    answer_U = state_U - boundary.first_accept == boundary.answer_tag
    eos_U = jnp.isin(token_U, boundary.eos_W)
    full_U = position_U + 1 >= jnp.minimum(s.max_tokens, slots.begin_U + s.step_tokens)
    over_U = slots.calls_U >= s.max_calls
    status_U = jnp.where(
        accepted_U,
        jnp.where(answer_U, Status.ANSWERED, jnp.where(over_U, Status.OUT_OF_STEPS, 0)),
        jnp.where(eos_U, Status.STOPPED, jnp.where(full_U, Status.OUT_OF_TOKENS, 0)),
    )
    calls_U = thinking_U & accepted_U & (status_U == Status.RUNNING)
    old, row_U = slots.trajectory, jnp.where(thinking_U, slots.row_U, slots.rows)

    def put(table_BT: Array, value_U: Array | int) -> Array:
        return table_BT.at[row_U, position_U].set(value_U, mode="drop")

    counts, waiting = slots.counts, slots.has(Phase.WAITING).sum()
    slots = slots.replace(
        trajectory=old.replace(
            token_BT=put(old.token_BT, token_U),
            source_BT=put(old.source_BT, int(Source.POLICY)),
            step_BT=put(old.step_BT, slots.step_U),
            logp_BT=put(old.logp_BT, drawn.logp_B),
            entropy_BT=put(old.entropy_BT, drawn.entropy_B),
        ),
        phase_U=jnp.where(calls_U, Phase.CALLING, slots.phase_U),
        length_U=position_U + thinking_U,
        calls_U=slots.calls_U + calls_U,
        state_U=jnp.where(thinking_U, state_U, slots.state_U),
        hidden_UD=jnp.where(thinking_U[:, None], hidden_UXD[:, 0], slots.hidden_UD),
        cache=cache,
        counts=counts.replace(
            ticks=counts.ticks + 1,
            slot_ticks=counts.slot_ticks + len(thinking_U),
            sampled=counts.sampled + thinking_U.sum(),
            waiting=counts.waiting + waiting,
        ),
    )
    return end_rows(slots, thinking_U & (status_U != Status.RUNNING), status_U)


def step_of(settings: RolloutSettings, slots: Slots) -> Span:
    """The tokens of each slot's current step."""

    def cut(row: Array, begin: Array) -> Array:
        table_BT = slots.trajectory.token_BT
        # near the row's end a slice would begin too early: rather shift what it brings
        first = jnp.minimum(begin, table_BT.shape[1] - width)
        part_X = jax.lax.dynamic_slice(table_BT, (row, first), (1, width))[0]
        return jnp.roll(part_X, first - begin)

    width = min(settings.step_tokens, settings.max_tokens)
    return Span(jax.vmap(cut)(slots.row_U, slots.begin_U), slots.length_U - slots.begin_U)


def draw(inputs: RolloutInputs, slots: Slots) -> tuple[Array, Array]:
    """Algorithm 1's coin at the boundary t > 0 that each slot's row is at.

    Returns wants_U, whether to retrieve, and pick_U, which random trace in [0, 1), -1 for none.
    """
    key = jax.random.fold_in(inputs.key, 1)
    key_U = jax.vmap(partial(jax.random.fold_in, key))(slots.calls_U)
    key_U = jax.vmap(jax.random.fold_in)(key_U, inputs.row_B[slots.row_U])
    coin_U, noisy_U, pick_U = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(key_U).T
    wants_U = inputs.hybrid_B[slots.row_U] & (coin_U < inputs.probability)
    wants_U &= slots.calls_U <= inputs.last_retrieval
    return wants_U, jnp.where(noisy_U < inputs.noise, pick_U, -1.0)


class Texts(NamedTuple):
    """What the host brought for the slots that are ready: an observation, perhaps a trace."""

    ready_U: Array
    healthy_U: Array  # False where the host failed
    observation_U: Span
    trace_U: Span


def read(
    model: ModelSettings, settings: RolloutSettings, params: Params, slots: Slots, texts: Texts
) -> Slots:
    """Reads what the host brought, slot by slot and chunk by chunk; the rows go on to think.

    A row whose observation does not fit, or leaves no room, ends as OUT_OF_TOKENS. Only slots with
    something to read are computed.
    """
    room_U = settings.max_tokens - slots.length_U
    fits_U = texts.observation_U.length_B <= room_U
    reads_U = texts.ready_U & texts.healthy_U & fits_U
    observed_U = jnp.where(reads_U, texts.observation_U.length_B, 0)
    traced_U = jnp.where(reads_U, texts.trace_U.length_B, 0)
    start_U, total_U = slots.length_U, observed_U + traced_U
    token_UX = joined(texts.observation_U.token_BX, texts.trace_U.token_BX, observed_U)
    chunk = chunk_of(settings)
    token_UX = jnp.pad(token_UX, ((0, 0), (0, -token_UX.shape[1] % chunk)))
    last_chunk_U = jnp.cumsum(-(-total_U // chunk))

    def read_chunk(index: Array, now: Slots) -> Slots:
        u = jnp.argmax(last_chunk_U > index)
        at = (index - jnp.where(u > 0, last_chunk_U[u - 1], 0)) * chunk
        part_1X = jax.lax.dynamic_slice(token_UX, (u, at), (1, chunk))
        start = start_U[u] + at
        count = jnp.minimum(total_U[u] - at, chunk)
        hidden_1XD, cache = extend(
            model, params, now.cache, part_1X, start[None], first=u, longest=start + chunk
        )
        is_trace_X = at + jnp.arange(chunk) >= observed_U[u]
        old, row = now.trajectory, now.row_U[u]

        def put(table_BT: Array, value_X: Array) -> Array:
            before_1X = jax.lax.dynamic_slice(table_BT, (row, start), (1, chunk))
            value_1X = jnp.where(jnp.arange(chunk) < count, value_X, before_1X)
            return jax.lax.dynamic_update_slice(table_BT, value_1X, (row, start))

        return now.replace(
            trajectory=old.replace(
                token_BT=put(old.token_BT, part_1X[0]),
                source_BT=put(old.source_BT, jnp.where(is_trace_X, Source.RETRIEVED, Source.TOOL)),
                step_BT=put(old.step_BT, now.step_U[u] + is_trace_X),
            ),
            hidden_UD=now.hidden_UD.at[u].set(hidden_1XD[0, count - 1]),
            cache=cache,
        )

    slots = jax.lax.fori_loop(0, last_chunk_U[-1], read_chunk, slots)
    length_U = start_U + total_U
    full_U = ~fits_U | (length_U >= settings.max_tokens)
    status_U = jnp.where(texts.healthy_U, Status.OUT_OF_TOKENS, Status.MALFORMED)
    asked_U = jnp.where(slots.has(Phase.CALLING), Phase.WAITING, slots.phase_U)
    called = (asked_U == Phase.WAITING).any()
    counts = slots.counts
    slots = slots.replace(
        phase_U=jnp.where(texts.ready_U, Phase.THINKING, asked_U),
        length_U=length_U,
        begin_U=jnp.where(texts.ready_U, length_U, slots.begin_U),
        step_U=slots.step_U + texts.ready_U + (traced_U > 0),
        state_U=jnp.where(texts.ready_U, 0, slots.state_U),
        counts=counts.replace(
            absorbed=counts.absorbed + total_U.sum(), host_calls=counts.host_calls + called
        ),
    )
    return end_rows(slots, texts.ready_U & (full_U | ~texts.healthy_U), status_U)


def joined(first_UX: Array, second_UX: Array, length_U: Array) -> Array:
    """The first `length_U` of one token table, then the other."""

    def row(first_X: Array, second_X: Array, length: Array) -> Array:
        padded_X = jnp.pad(first_X, (0, len(second_X)))
        return jax.lax.dynamic_update_slice(padded_X, second_X, (length,))

    return jax.vmap(row)(first_UX, second_UX, length_U)
