"""Branching: rows that begin as forks of other rows (ARPO, AEPO, Tree-GRPO).

The rows of a question are cut into trees of `rollout.tree_rows` consecutive rows. A tree's first
row, its root, begins from the prompt and owns the others. A fork takes a copy of its parent's tape
and of its row of the cache up to a step boundary; from there it draws by its own row number. Which
row a fork becomes depends on the tree alone, not on when it happens, so that tapes do not depend on
the number of slots or on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.rollout.slots import Draws, Phase, RolloutInputs, Slots, Starts, Trees, boundary_keys
from rapo_jax.types import Array, Forks, Source

OPENING_TOKENS = 20
"""Number of first tokens of a step over which its entropy is summed (ARPO)."""


class Given(NamedTuple):
    """Constants of a rollout."""

    model: ModelSettings
    settings: RolloutSettings
    inputs: RolloutInputs


class Branching(NamedTuple):
    """A branching strategy: (given, before, after, which_U) -> `after` with new forks."""

    at_boundary: Callable[[Given, Slots, Slots, Array], Slots]
    """For the slots whose rows continue after an observation."""
    at_end: Callable[[Given, Slots, Slots, Array], Slots]
    """For the slots whose rows ended."""
    records: bool = False
    """Whether it needs `Starts`."""


def with_trees(settings: RolloutSettings, slots: Slots, tree_rows: int) -> Slots:
    """Adds the tree state to slots in which no row has begun: only the roots are due.

    Unchanged if `tree_rows` = 1.
    """
    if tree_rows == 1:
        return slots
    B, (U, D) = slots.rows, slots.hidden_UD.shape
    number_B, zero_B = jnp.arange(B), jnp.zeros((B,), jnp.int32)
    starts = None
    if BRANCHINGS[settings.branching].records:
        zero_UY = jnp.zeros((U, max(settings.max_calls, 1)), jnp.int32)
        hidden_UYD = jnp.zeros((*zero_UY.shape, D), slots.hidden_UD.dtype)
        starts = Starts(zero_UY, zero_UY, hidden_UYD)
    trees = Trees(
        reserved_1=jnp.zeros((1,), jnp.int32),
        end_B=(number_B // tree_rows + 1) * tree_rows,
        streak_U=jnp.zeros((U,), jnp.int32),
        forks=Forks(number_B, zero_B, zero_B, tree_rows),
        starts=starts,
    )
    return slots.replace(due_B=number_B % tree_rows == 0, trees=trees)


def branched(
    model: ModelSettings,
    settings: RolloutSettings,
    inputs: RolloutInputs,
    before: Slots,
    after: Slots,
    *,
    reading: bool = False,
) -> Slots:
    """Applies the branching strategy after a token or, if `reading`, after observations."""
    if after.trees is None:
        return after
    strategy, given = BRANCHINGS[settings.branching], Given(model, settings, inputs)
    free_U, thinking_U = after.has(Phase.FREE), after.has(Phase.THINKING)
    ended_U = ~before.has(Phase.FREE) & free_U
    if reading:
        asked_U = before.has(Phase.CALLING) | before.has(Phase.WAITING)
        after = strategy.at_boundary(given, before, after, asked_U & thinking_U)
    return strategy.at_end(given, before, after, ended_U)


def fork_by_entropy(given: Given, before: Slots, after: Slots, boundary_U: Array) -> Slots:
    """Forks rows by the entropy rise of the last step over their first step.

    The fork becomes the middle one of the rows that its parent owns, and owns those after it.
    """
    s, trees, row_U = given.settings, after.trees, before.row_U
    assert trees is not None
    prompt_U = after.prompts.length_Q[row_U // after.group_size]
    now_U = opening_entropy(after, before.begin_U, before.step_U)
    rise_U = (now_U - opening_entropy(after, prompt_U, 0)) / math.log(given.model.vocab)
    key_U = boundary_keys(Draws.FORKS, given.inputs, before)
    wants_U = boundary_U & is_to_fork(
        jax.vmap(jax.random.uniform)(key_U),
        rise_U,
        trees.streak_U,
        probability=s.branch_probability,
        weight=s.branch_entropy,
        penalty=s.branch_penalty,
    )
    streak_U = jnp.where(wants_U, trees.streak_U + 1, jnp.where(boundary_U, 0, trees.streak_U))
    end_U = trees.end_B[row_U]
    forks_U = wants_U & (row_U + 1 < end_U)
    child_U = jnp.where(forks_U, row_U + (end_U - row_U + 1) // 2, after.rows)
    end_B = trees.end_B.at[child_U].set(end_U, mode="drop")
    end_B = end_B.at[jnp.where(forks_U, row_U, after.rows)].set(child_U, mode="drop")
    from_B = jnp.full((after.rows,), -1, jnp.int32)
    from_B = from_B.at[child_U].set(jnp.arange(len(row_U)), mode="drop")
    after = after.replace(trees=trees.replace(end_B=end_B, streak_U=streak_U))
    return begin_forks(after, row_U, from_B, present_start)


def is_to_fork(
    uniform_U: Array,
    rise_U: Array,
    streak_U: Array,
    *,
    probability: float,
    weight: float,
    penalty: float,
) -> Array:
    """Which slots fork, bool [U] (ARPO; AEPO has penalty > 0).

    (u + weight * rise) * max(0, 1 - penalty * streak) >= 1 - probability.

    Args:
      uniform_U: a draw from [0, 1).
      rise_U: entropy of the last step less that of the first, in units of ln V.
      streak_U: at how many boundaries just before the rule said yes.
    """
    allowed_U = jnp.maximum(0, 1 - penalty * streak_U)
    return (uniform_U + weight * rise_U) * allowed_U >= 1 - probability


def opening_entropy(slots: Slots, begin_U: Array, step_U: Array | int) -> Array:
    """Total entropy, in nats, of the first policy tokens of a step of each slot's row."""
    tape, row_U1 = slots.trajectory, slots.row_U[:, None]
    position_UX = begin_U[:, None] + jnp.arange(OPENING_TOKENS)

    def part(table_BT: Array) -> Array:
        return table_BT.at[row_U1, position_UX].get(mode="fill", fill_value=0)

    is_step_UX = part(tape.step_BT) == jnp.reshape(step_U, (-1, 1))
    policy_UX = is_step_UX & (part(tape.source_BT) == Source.POLICY)
    return jnp.where(policy_UX, part(tape.entropy_BT), 0).sum(1)


def restart_next(given: Given, before: Slots, after: Slots, ended_U: Array) -> Slots:
    """Restarts from the prompt the first row that an ended row still owns; it owns the others."""
    trees, row_U = after.trees, before.row_U
    assert trees is not None
    end_U = trees.end_B[row_U]
    next_U = jnp.where(ended_U & (row_U + 1 < end_U), row_U + 1, after.rows)
    return after.replace(
        due_B=after.due_B.at[next_U].set(True, mode="drop"),
        trees=trees.replace(end_B=trees.end_B.at[next_U].set(end_U, mode="drop")),
    )


def record_start(given: Given, before: Slots, after: Slots, boundary_U: Array) -> Slots:
    """Records the start of the next step in `Starts`."""
    trees = after.trees
    assert trees is not None and trees.starts is not None
    u = jnp.where(boundary_U, jnp.arange(len(boundary_U)), len(boundary_U))
    at, old = (u, before.calls_U - 1), trees.starts
    starts = Starts(
        old.position_UY.at[at].set(after.length_U, mode="drop"),
        old.step_UY.at[at].set(after.step_U, mode="drop"),
        old.hidden_UYD.at[at].set(after.hidden_UD, mode="drop"),
    )
    return after.replace(trees=trees.replace(starts=starts))


def expand(given: Given, before: Slots, after: Slots, ended_U: Array) -> Slots:
    """Starts all other rows of an ended root's tree, each at a boundary of it or at the prompt.

    They are drawn with equal chances and with replacement; the root's end is none of them.
    """
    assert after.trees is not None
    tree_rows, row_U = after.trees.rows, before.row_U
    roots_U = ended_U & (row_U % tree_rows == 0)
    others = jnp.where(roots_U, row_U, after.rows)[:, None] + jnp.arange(1, tree_rows)
    from_B = jnp.full((after.rows,), -1, jnp.int32)
    from_B = from_B.at[others].set(jnp.arange(len(row_U))[:, None], mode="drop")
    # the last call of a row that ended while it waited for the host has no step after it
    boundaries_U = before.calls_U - ~before.has(Phase.THINKING)
    key = jax.random.fold_in(given.inputs.key, Draws.EXPANSIONS)
    key_B = jax.vmap(partial(jax.random.fold_in, key))(given.inputs.row_B)
    uniform_B = jax.vmap(jax.random.uniform)(key_B)
    choices_B = boundaries_U[from_B] + 1
    calls_B = jnp.minimum((uniform_B * choices_B).astype(jnp.int32), choices_B - 1)
    from_prompt_B = (from_B >= 0) & (calls_B == 0)
    after = after.replace(due_B=after.due_B | from_prompt_B)
    from_B = jnp.where(from_prompt_B, -1, from_B)
    return begin_forks(after, row_U, from_B, partial(recorded_start, calls_B))


class Start(NamedTuple):
    """The state that a fork begins with."""

    length: Array
    step: Array
    calls: Array
    hidden_D: Array


def present_start(slots: Slots, u: Array, child: Array) -> Start:
    """Current state of the row of slot u."""
    return Start(slots.length_U[u], slots.step_U[u], slots.calls_U[u], slots.hidden_UD[u])


def recorded_start(calls_B: Array, slots: Slots, u: Array, child: Array) -> Start:
    """State at the start of the step after call number `calls_B[child]` of slot u's row."""
    assert slots.trees is not None and slots.trees.starts is not None
    starts, calls = slots.trees.starts, calls_B[child]
    at = (u, calls - 1)
    return Start(starts.position_UY[at], starts.step_UY[at], calls, starts.hidden_UYD[at])


def begin_forks(slots: Slots, row_U: Array, from_B: Array, start_of: Callable[..., Start]) -> Slots:
    """Starts each row b with from_B[b] >= 0 in a free slot, as a fork of row row_U[from_B[b]].

    There is a free slot for each: `fill` keeps them. `start_of` (slots, u, row) is where a fork of
    slot u begins; a slot whose row has ended keeps its cache until all its forks have begun.
    """
    is_source_U = (from_B[:, None] == jnp.arange(len(row_U))).any(0)

    def fork(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        from_B, slots = carry
        child, v = jnp.argmax(from_B >= 0), jnp.argmax(slots.has(Phase.FREE) & ~is_source_U)
        u, trees, tape = from_B[child], slots.trees, slots.trajectory
        assert trees is not None
        start, parent = start_of(slots, u, child), row_U[u]

        def copy_tape(table_BT: Array) -> Array:
            shared_T = jnp.arange(table_BT.shape[1]) < start.length
            return table_BT.at[child].set(jnp.where(shared_T, table_BT[parent], 0))

        def copy_slot(table: Array) -> Array:
            part = jax.lax.dynamic_index_in_dim(table, u, keepdims=True)
            return jax.lax.dynamic_update_slice(table, part, (v, *[0] * (table.ndim - 1)))

        slots = slots.replace(
            trajectory=tape.replace(
                token_BT=copy_tape(tape.token_BT),
                source_BT=copy_tape(tape.source_BT),
                step_BT=copy_tape(tape.step_BT),
                logp_BT=copy_tape(tape.logp_BT),
                entropy_BT=copy_tape(tape.entropy_BT),
            ),
            row_U=slots.row_U.at[v].set(child),
            phase_U=slots.phase_U.at[v].set(Phase.THINKING),
            length_U=slots.length_U.at[v].set(start.length),
            begin_U=slots.begin_U.at[v].set(start.length),
            step_U=slots.step_U.at[v].set(start.step),
            calls_U=slots.calls_U.at[v].set(start.calls),
            state_U=slots.state_U.at[v].set(0),
            hidden_UD=slots.hidden_UD.at[v].set(start.hidden_D),
            cache=jax.tree.map(copy_slot, slots.cache),
            trees=trees.replace(
                reserved_1=trees.reserved_1 - 1,
                streak_U=copy_slot(trees.streak_U),
                forks=trees.forks.replace(
                    parent_B=trees.forks.parent_B.at[child].set(parent),
                    tokens_B=trees.forks.tokens_B.at[child].set(start.length),
                    calls_B=trees.forks.calls_B.at[child].set(start.calls),
                ),
            ),
        )
        return from_B.at[child].set(-1), slots

    return jax.lax.while_loop(lambda carry: (carry[0] >= 0).any(), fork, (from_B, slots))[1]


BRANCHINGS = {
    "entropy": Branching(fork_by_entropy, restart_next),
    "random": Branching(record_start, expand, records=True),
}
"""Value of `rollout.branching` -> strategy."""
