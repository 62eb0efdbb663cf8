"""Thinking: sampling in all slots that can, until the host is needed (paper, Algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.model.decoding import extend
from rapo_jax.model.sampling import sample
from rapo_jax.model.transformer import unembed
from rapo_jax.rollout.branching import branched
from rapo_jax.rollout.slots import (
    Draws,
    Phase,
    RolloutInputs,
    Slots,
    boundary_keys,
    end_rows,
    fill,
    row_keys,
)
from rapo_jax.types import Array, Params, Source, Span, Status

SLOTS_PER_CALL = 64
"""The host is called when calls * SLOTS_PER_CALL >= thinking + calling slots: with 64 slots or
fewer, at the first call."""
POLL_TICKS = 16
"""Ticks between polls of the host for observations while rows wait."""


class Boundary(NamedTuple):
    """Detects the end of a step on the bytes of the sampled tokens, not on single ids.

    `next_state_AV` is the byte-level automaton over the closing tags compiled into a token table;
    states from `first_accept` on mean that closing tag number `state - first_accept` was completed.
    """

    next_state_AV: jax.Array
    first_accept: int
    answer_tag: int
    """-1 for none."""
    eos_W: jax.Array
    asks_at_eos: bool = False
    """Whether the host replies to a step that ends otherwise, in place of its end-of-sequence."""


def think(
    model: ModelSettings,
    settings: RolloutSettings,
    boundary: Boundary,
    params: Params,
    inputs: RolloutInputs,
    slots: Slots,
) -> Slots:
    """Samples until the host is needed; the next rows take the slots of rows that end."""

    def can_continue(carry: tuple[Array, Slots]) -> Array:
        """Whether enough slots can continue without the host."""
        ticks, now = carry
        thinking, calling = now.has(Phase.THINKING).sum(), now.has(Phase.CALLING).sum()
        late = now.has(Phase.WAITING).any() & (ticks >= POLL_TICKS)
        return (thinking > 0) & (calling * SLOTS_PER_CALL < thinking + calling) & ~late

    def tick(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        ticks, before = carry
        after = think_token(model, settings, boundary, params, inputs, before)
        return ticks + 1, fill(branched(model, settings, inputs, before, after))

    return jax.lax.while_loop(can_continue, tick, (jnp.int32(0), fill(slots)))[1]


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
    tag; one that ends otherwise ends its row, unless the host is asked for a reply (`Boundary`),
    and so does a call beyond `max_calls`.
    """
    thinking_U, position_U = slots.has(Phase.THINKING), slots.length_U
    key_U = row_keys(Draws.TOKENS, inputs, slots)
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
        length_B=jnp.where(thinking_U, position_U + 1, 0),
    )
    state_U = boundary.next_state_AV[slots.state_U, token_U].astype(jnp.int32)
    status_U, calls_U, kept_U = ending(settings, boundary, slots, token_U, state_U)
    old, row_U = slots.trajectory, jnp.where(kept_U, slots.row_U, slots.rows)

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
        length_U=position_U + kept_U,
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


def ending(
    settings: RolloutSettings, boundary: Boundary, slots: Slots, token_U: Array, state_U: Array
) -> tuple[Array, Array, Array]:
    """Which steps and rows the sampled tokens end; `state_U`: automaton states after them.

    Returns status_U, with which rows end, RUNNING for those that do not; calls_U, the slots whose
    step ended in a call; and kept_U, the slots whose token belongs to their row.
    """
    s, thinking_U, position_U = settings, slots.has(Phase.THINKING), slots.length_U
    accepted_U = state_U >= boundary.first_accept
    answer_U = state_U - boundary.first_accept == boundary.answer_tag
    eos_U = jnp.isin(token_U, boundary.eos_W)
    full_U = position_U + 1 >= jnp.minimum(s.max_tokens, slots.begin_U + s.step_tokens)
    over_U = slots.calls_U >= s.max_calls
    # a step that an end-of-sequence token closes may call nothing: only the host can say
    over_status_U = jnp.where(eos_U, Status.STOPPED, Status.OUT_OF_CALLS)
    status_U = jnp.where(
        accepted_U,
        jnp.where(answer_U, Status.ANSWERED, jnp.where(over_U, over_status_U, Status.RUNNING)),
        jnp.where(eos_U, Status.STOPPED, jnp.where(full_U, Status.OUT_OF_TOKENS, Status.RUNNING)),
    )
    kept_U, ends_U = thinking_U, accepted_U
    if boundary.asks_at_eos:
        asks_U = ~accepted_U & (eos_U | full_U) & ~over_U & (position_U + 1 < s.max_tokens)
        status_U = jnp.where(asks_U, Status.RUNNING, status_U)
        kept_U, ends_U = thinking_U & ~(asks_U & eos_U), accepted_U | asks_U
    return status_U, thinking_U & ends_U & (status_U == Status.RUNNING), kept_U


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
    """Draws for each slot's step boundary t > 0 whether to retrieve (Algorithm 1).

    Returns retrieves_U, whether to retrieve, and pick_U, which random trace in [0, 1), -1 for none.
    """
    key_U = boundary_keys(Draws.RETRIEVALS, inputs, slots)
    coin_U, noisy_U, pick_U = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(key_U).T
    retrieves_U = inputs.hybrid_B[slots.row_U] & (coin_U < inputs.probability)
    retrieves_U &= slots.calls_U <= inputs.last_retrieval
    return retrieves_U, jnp.where(noisy_U < inputs.noise, pick_U, -1.0)
