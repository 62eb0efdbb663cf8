"""Axis letters, sources, and the pytrees that are passed between packages.

A name ends in the axes of its array; each letter has one meaning in the whole package:

    Q questions          G rollouts per question     B = Q * G rows
    S steps              T positions of a row        X positions of a part of it: span, chunk
    V vocabulary         D width                     F ffn width           Y calls of a row
    L layers             N query heads               K key/value heads     H head width, R = H / 2
    M step traces in the buffer, passages            E embedding width     C candidates of a search
    A automaton states   W stop tokens               P processes           U slots of a shard
    J members of a comparison: rows, steps                                 I chunks of positions

A number is an axis of so many, as in `scale_Q1` and `next_state_A256`.

What serves any rows, such as a `Span`, says B for as many as are given: Q prompts, U slots.
"""

from __future__ import annotations

import enum
from typing import Any

import flax.struct

Array = Any
"""A jax array on the device, a numpy array on the host."""

Params = Any
"""A pytree of parameters, as `flax.linen.Module.init` returns it."""


class Source(enum.IntEnum):
    """Who wrote a token. Every mask of the method follows from it (paper, Algorithm 1).

    On a tape of another agent's trajectory, to be imitated, POLICY marks what that agent wrote.
    """

    PAD = 0
    PROMPT = 1
    POLICY = 2
    TOOL = 3
    RETRIEVED = 4


class Status(enum.IntEnum):
    """State of a row. Everything but RUNNING is final."""

    RUNNING = 0
    ANSWERED = 1  # the policy closed `</answer>`
    STOPPED = 2  # end-of-sequence or a step without a call, where no `</answer>` was written
    OUT_OF_CALLS = 3  # a tool call beyond the allowed number of calls
    OUT_OF_TOKENS = 4  # the step or the row reached its token limit
    MALFORMED = 5  # the host could not serve the row; the trainer raises after the program


class Span(flax.struct.PyTreeNode):
    """Tokens to append to each row: the first `length_B` of `token_BX`, which may be none."""

    token_BX: Array
    length_B: Array


class ActRequest(flax.struct.PyTreeNode):
    """What a turn asks the host to act on, slots first.

    Rows are numbered among those of all processes; `host_callbacks` gives a process its own.
    """

    row_U: Array
    calls_U: Array  # the slot has a step whose calls are to be started
    waits_U: Array  # it waits for calls that were started in an earlier turn
    retrieves_U: Array  # of these, the row is to retrieve when its observation is there
    idle_U: Array  # equal in all slots: none can sample, so that the host may wait
    step: Span  # the step that makes the calls
    parent_U: Array  # row that a fork began from
    shared_U: Array  # how many of that row's calls the fork copied


class Texts(flax.struct.PyTreeNode):
    """Texts from the host for the slots that have one; the others have no tokens."""

    healthy_U: Array  # False where the host failed
    span: Span


class ActAnswer(flax.struct.PyTreeNode):
    """What the host has for the slots of an `ActRequest`."""

    ready_U: Array
    observation: Texts
    query_U: Array  # where ready and to retrieve: what `embed` turns into the key of S_<t


class TraceRequest(flax.struct.PyTreeNode):
    """The step traces that a turn asks for, slots first; rows as in `ActRequest`."""

    row_U: Array
    retrieves_U: Array
    key_UE: Array
    pick_U: Array  # in [0, 1): that random trace; -1: the nearest
    room_U: Array  # tokens left in the row; a trace that leaves none to the policy is left out


class Forks(flax.struct.PyTreeNode):
    """How rows began: a fork starts with a copy of the first tokens of another row of its group.

    A row that began from its prompt is its own parent, and copied nothing.
    """

    parent_B: Array  # number of the parent within the group
    tokens_B: Array  # tokens that were copied, the prompt included
    calls_B: Array  # tool calls among them
    tree_rows: int = flax.struct.field(
        pytree_node=False
    )  # of a tree; the first begins from the prompt


class Trajectory(flax.struct.PyTreeNode):
    """The tapes of a batch of rows, written left to right by `think` and `read`.

    `step_BT` numbers steps from 0 along each row: a policy step with the observation it caused is
    one step, a retrieved trace is a step of its own, the prompt belongs to step 0. `logp_BT` and
    `entropy_BT` (nats) are those of the untempered softmax, which is the sampling distribution at
    temperature 1, at POLICY tokens and 0 elsewhere: `logp_BT[b, t]` is the log-probability of
    `token_BT[b, t]` given the tokens before it. `forks` is None where rows do not branch
    (`rollout.tree_rows` = 1).
    """

    token_BT: Array
    source_BT: Array
    step_BT: Array
    logp_BT: Array
    entropy_BT: Array
    status_B: Array
    length_B: Array
    forks: Forks | None = None


class Batch(flax.struct.PyTreeNode):
    """Input of updates, a rollout batch or a part of it: tapes, log pi_old, A and F_ret.

    `off_policy_B` is 1 at rows that the present policy did not sample, and `behaviour_logp_BT` the
    log-probabilities of the policy that sampled them, where a method has such rows.
    """

    token_BT: Array
    source_BT: Array
    old_logp_BT: Array
    advantage: Array  # [B]; or [B, T], one of each token
    retrieved_share_B: Array
    off_policy_B: Array = None
    behaviour_logp_BT: Array = None


class TrainState(flax.struct.PyTreeNode):
    """Everything an update changes."""

    params: Params
    opt_state: Any
    step: Array  # updates so far, skipped ones included
