"""The state of a rollout: rows that pass through slots, and how they begin and end.

B rows (rollouts) of a shard pass through U slots. A slot holds the KV cache of one row from its
prompt to its end, and then takes the next row. Each is in a phase of its own: some sample while
others wait for the host. What a row draws depends on its number and position alone, so that its
tape does not depend on its slot, on the other rows, or on how long the host took.
"""

from __future__ import annotations

import enum
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.model.decoding import Cache, empty_cache, prefill
from rapo_jax.types import Array, Forks, Params, Source, Span, Trajectory


class Draws(enum.IntEnum):
    """Purposes of random numbers in a rollout; folded into its random key."""

    TOKENS = 0
    RETRIEVALS = 1
    FORKS = 2
    EXPANSIONS = 3
    CONDENSING = 4


def row_keys(draws: Draws, inputs: RolloutInputs, slots: Slots) -> Array:
    """Random key of each slot's row for a purpose, so that draws do not depend on the slot."""
    key = jax.random.fold_in(inputs.key, draws)
    return jax.vmap(partial(jax.random.fold_in, key))(inputs.row_B[slots.row_U])


def boundary_keys(draws: Draws, inputs: RolloutInputs, slots: Slots) -> Array:
    """Random key of each slot's row at its present step boundary, for a purpose."""
    key = jax.random.fold_in(inputs.key, draws)
    key_U = jax.vmap(partial(jax.random.fold_in, key))(slots.calls_U)
    return jax.vmap(jax.random.fold_in)(key_U, inputs.row_B[slots.row_U])


class Phase(enum.IntEnum):
    """State of a slot."""

    FREE = 0
    THINKING = 1  # samples tokens
    CALLING = 2  # its step ended in a call that the host does not know yet
    WAITING = 3  # for the host's answer


class RolloutInputs(flax.struct.PyTreeNode):
    """Inputs of a rollout that may change without recompilation."""

    key: Array
    row_B: Array  # number of each row of the shard among those of all shards
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
    waiting: Array  # slot-ticks of rows that waited for their observations (phase WAITING)
    absorbed: Array  # tokens of observations and traces
    host_calls: Array


class Slots(flax.struct.PyTreeNode):
    """The rows of a shard while they are being written; the cache and hidden states of U of them.

    Tapes have some positions more than a row may have, for the chunks that are written whole.
    """

    trajectory: Trajectory
    prompts: Prompts
    due_B: Array  # rows that are to begin from their prompts as soon as there is room
    row_U: Array  # the slot's row, numbered within the shard
    phase_U: Array
    length_U: Array  # tokens of the row so far
    begin_U: Array  # position of the current step's first token
    step_U: Array  # step that the next token belongs to
    calls_U: Array  # policy steps that ended in a call
    state_U: Array  # of the boundary's automaton
    hidden_UD: Array  # of each row's last token: the next one's logits are its unembedding
    cache: Cache
    counts: Counts
    trees: Trees | None = None  # None: all rows begin from their prompts

    @property
    def unfinished(self) -> Array:
        return (self.phase_U != Phase.FREE).any() | self.due_B.any()

    @property
    def rows(self) -> int:
        return self.trajectory.status_B.shape[0]

    @property
    def group_size(self) -> int:
        return self.rows // len(self.prompts.length_Q)

    def has(self, phase: Phase) -> Array:
        return self.phase_U == phase


class Trees(flax.struct.PyTreeNode):
    """Rows of a tree may begin as forks of each other; see `branching`.

    The tree's rows are consecutive and the first is its root. A row that runs or is due owns the
    rows after it and before `end_B`, which have not begun.
    """

    reserved_1: Array  # slots that stay free for rows that others own
    end_B: Array
    streak_U: Array  # consecutive boundaries at which the slot's row was to fork
    forks: Forks  # here parents are numbered as rows of the shard
    starts: Starts | None = None

    @property
    def rows(self) -> int:
        return self.forks.tree_rows


class Starts(flax.struct.PyTreeNode):
    """Start of the step after each call of a slot's row, for forks after its end."""

    position_UY: Array
    step_UY: Array
    hidden_UYD: Array  # of the token before


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
        due_B=jnp.ones((B,), bool),
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
        None if slots.trees is None else _numbered_in_groups(slots.trees.forks, slots.group_size),
    )


def _numbered_in_groups(forks: Forks, group_size: int) -> Forks:
    return forks.replace(parent_B=forks.parent_B % group_size)


def fill(slots: Slots) -> Slots:
    """Gives the next due rows to the free slots: each gets a copy of its prompt's cache.

    The root of a tree begins once a slot is left for each row of it, so that no fork has to wait.
    """

    def unfilled(slots: Slots) -> Array:
        room, needed = slots.has(Phase.FREE).sum(), jnp.int32(1)
        if (trees := slots.trees) is not None:
            is_root = jnp.argmax(slots.due_B) % trees.rows == 0
            needed = jnp.where(is_root, trees.rows + trees.reserved_1[0], 1)
        return slots.due_B.any() & (room >= needed)

    def begin_row(slots: Slots) -> Slots:
        u, row = jnp.argmax(slots.has(Phase.FREE)), jnp.argmax(slots.due_B)
        q = row // slots.group_size
        length = slots.prompts.length_Q[q]

        def copy(old: Array, prompt: Array) -> Array:
            part = jax.lax.dynamic_index_in_dim(prompt, q, keepdims=True)
            return jax.lax.dynamic_update_slice(old, part, (u, *[0] * (old.ndim - 1)))

        trees = slots.trees
        if trees is not None:
            taken = jnp.where(row % trees.rows == 0, 1 - trees.rows, 1)
            trees = trees.replace(
                reserved_1=trees.reserved_1 - taken, streak_U=trees.streak_U.at[u].set(0)
            )
        return slots.replace(
            due_B=slots.due_B.at[row].set(False),
            row_U=slots.row_U.at[u].set(row),
            phase_U=slots.phase_U.at[u].set(Phase.THINKING),
            length_U=slots.length_U.at[u].set(length),
            begin_U=slots.begin_U.at[u].set(length),
            step_U=slots.step_U.at[u].set(0),
            calls_U=slots.calls_U.at[u].set(0),
            state_U=slots.state_U.at[u].set(0),
            hidden_UD=slots.hidden_UD.at[u].set(slots.prompts.hidden_QD[q]),
            cache=jax.tree.map(copy, slots.cache, slots.prompts.cache),
            trees=trees,
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
