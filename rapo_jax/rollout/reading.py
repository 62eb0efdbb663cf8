"""Reading: prefills observations and traces from the host, chunk by chunk, some slots at a time."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.model.decoding import extend
from rapo_jax.rollout.slots import Phase, Slots, chunk_of, end_rows
from rapo_jax.types import Array, Params, Source, Span, Status


class Answers(NamedTuple):
    """The host's answers for the slots that are ready: an observation, perhaps a trace."""

    ready_U: Array
    healthy_U: Array  # False where the host failed
    observation_U: Span
    trace_U: Span


def read(
    model: ModelSettings, settings: RolloutSettings, params: Params, slots: Slots, answers: Answers
) -> Slots:
    """Appends the ready observations and traces to the tapes and the KV cache.

    A chunk of `absorb_rows` slots at a time, of those that have most left to read; these slots then
    sample again.

    A row whose observation does not fit, or leaves no room, ends as OUT_OF_TOKENS; one whose step
    called nothing, so that its observation is empty, as STOPPED.
    """
    room_U = settings.max_tokens - slots.length_U
    fits_U = answers.observation_U.length_B <= room_U
    reads_U = answers.ready_U & answers.healthy_U & fits_U
    observed_U = jnp.where(reads_U, answers.observation_U.length_B, 0)
    traced_U = jnp.where(reads_U, answers.trace_U.length_B, 0)
    start_U, total_U = slots.length_U, observed_U + traced_U
    token_UX = joined(answers.observation_U.token_BX, answers.trace_U.token_BX, observed_U)
    chunk, at_once = chunk_of(settings), min(settings.absorb_rows, len(total_U))
    token_UX = jnp.pad(token_UX, ((0, 0), (0, chunk)))

    def unread(carry: tuple[Array, Slots]) -> Array:
        at_U, _ = carry
        return (at_U < total_U).any()

    def read_chunk(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        """Slots with nothing to read fill the rest: what is written beyond their end is hidden."""
        at_U, now = carry
        left_R, slot_R = jax.lax.top_k(total_U - at_U, at_once)
        at_R, count_R = at_U[slot_R], jnp.minimum(left_R, chunk)
        part_RX = jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=chunk))(
            token_UX[slot_R], at_R
        )
        start_R = start_U[slot_R] + at_R
        hidden_RXD, cache = extend(
            model, params, now.cache, part_RX, start_R,
            row_B=slot_R, length_B=jnp.where(count_R > 0, start_R + chunk, 0),
        )  # fmt: skip
        place_X = jnp.arange(chunk)
        is_trace_RX = at_R[:, None] + place_X >= observed_U[slot_R, None]
        valid_RX = place_X < count_R[:, None]
        row_RX = jnp.where(valid_RX, now.row_U[slot_R, None], now.rows)
        old, position_RX = now.trajectory, start_R[:, None] + place_X

        def put(table_BT: Array, value_RX: Array) -> Array:
            return table_BT.at[row_RX, position_RX].set(value_RX, mode="drop")

        last_RD = jax.vmap(lambda hidden_XD, count: hidden_XD[count - 1])(hidden_RXD, count_R)
        return at_U.at[slot_R].add(count_R), now.replace(
            trajectory=old.replace(
                token_BT=put(old.token_BT, part_RX),
                source_BT=put(old.source_BT, jnp.where(is_trace_RX, Source.RETRIEVED, Source.TOOL)),
                step_BT=put(old.step_BT, now.step_U[slot_R, None] + is_trace_RX),
            ),
            hidden_UD=now.hidden_UD.at[jnp.where(count_R > 0, slot_R, len(total_U))].set(
                last_RD, mode="drop"
            ),
            cache=cache,
        )

    _, slots = jax.lax.while_loop(unread, read_chunk, (jnp.zeros_like(total_U), slots))
    length_U = start_U + total_U
    full_U = ~fits_U | (length_U >= settings.max_tokens)
    silent_U = answers.ready_U & answers.healthy_U & (answers.observation_U.length_B == 0)
    healthy_status_U = jnp.where(silent_U, Status.STOPPED, Status.OUT_OF_TOKENS)
    status_U = jnp.where(answers.healthy_U, healthy_status_U, Status.MALFORMED)
    phase_U = jnp.where(slots.has(Phase.CALLING), Phase.WAITING, slots.phase_U)
    called = (phase_U == Phase.WAITING).any()
    counts = slots.counts
    slots = slots.replace(
        phase_U=jnp.where(answers.ready_U, Phase.THINKING, phase_U),
        length_U=length_U,
        begin_U=jnp.where(answers.ready_U, length_U, slots.begin_U),
        step_U=slots.step_U + answers.ready_U + (traced_U > 0),
        state_U=jnp.where(answers.ready_U, 0, slots.state_U),
        counts=counts.replace(
            absorbed=counts.absorbed + total_U.sum(), host_calls=counts.host_calls + called
        ),
    )
    return end_rows(slots, answers.ready_U & (full_U | silent_U | ~answers.healthy_U), status_U)


def joined(first_UX: Array, second_UX: Array, length_U: Array) -> Array:
    """Concatenates the first `length_U` tokens of one table with the other."""

    def row(first_X: Array, second_X: Array, length: Array) -> Array:
        padded_X = jnp.pad(first_X, (0, len(second_X)))
        return jax.lax.dynamic_update_slice(padded_X, second_X, (length,))

    return jax.vmap(row)(first_UX, second_UX, length_U)
