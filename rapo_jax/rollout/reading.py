"""Reading: prefills observations and traces from the host, slot by slot and chunk by chunk."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.model.decoding import extend
from rapo_jax.rollout.slots import Phase, Slots, chunk_of, end_rows
from rapo_jax.types import Array, Params, Source, Span, Status


class HostAnswers(NamedTuple):
    """The host's answers for the slots that are ready: an observation, perhaps a trace."""

    ready_U: Array
    healthy_U: Array  # False where the host failed
    observation_U: Span
    trace_U: Span


def read(
    model: ModelSettings,
    settings: RolloutSettings,
    params: Params,
    slots: Slots,
    answers: HostAnswers,
) -> Slots:
    """Appends the ready observations and traces to the tapes and the KV cache.

    One slot and one chunk at a time; these slots then sample again.

    A row whose observation does not fit, or leaves no room, ends as OUT_OF_TOKENS; one whose step
    called nothing, so that its observation is empty, as STOPPED. Only slots with something to read
    are computed.
    """
    room_U = settings.max_tokens - slots.length_U
    fits_U = answers.observation_U.length_B <= room_U
    reads_U = answers.ready_U & answers.healthy_U & fits_U
    observed_U = jnp.where(reads_U, answers.observation_U.length_B, 0)
    traced_U = jnp.where(reads_U, answers.trace_U.length_B, 0)
    start_U, total_U = slots.length_U, observed_U + traced_U
    token_UX = joined(answers.observation_U.token_BX, answers.trace_U.token_BX, observed_U)
    chunk = chunk_of(settings)
    token_UX = jnp.pad(token_UX, ((0, 0), (0, -token_UX.shape[1] % chunk)))
    last_chunk_U = jnp.cumsum(-(-total_U // chunk))

    def read_chunk(index: Array, now: Slots) -> Slots:
        u = jnp.argmax(last_chunk_U > index)
        at = (index - jnp.where(u > 0, last_chunk_U[u - 1], 0)) * chunk
        part_1X = jax.lax.dynamic_slice(token_UX, (u, at), (1, chunk))
        start = start_U[u] + at
        count = jnp.minimum(total_U[u] - at, chunk)
        start_1 = start[None]
        hidden_1XD, cache = extend(
            model, params, now.cache, part_1X, start_1, first=u, length_B=start_1 + chunk
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
    return _after_reading(
        settings, slots, answers, total_U=total_U, traced_U=traced_U, fits_U=fits_U
    )


def _after_reading(
    settings: RolloutSettings,
    slots: Slots,
    answers: HostAnswers,
    *,
    total_U: Array,
    traced_U: Array,
    fits_U: Array,
) -> Slots:
    """The slots after `total_U` tokens were read, `traced_U` of them of a trace.

    Slots whose answers are there sample again, but for rows that end (see `read`).
    """
    length_U = slots.length_U + total_U
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
