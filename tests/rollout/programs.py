"""The device's parts of a turn, compiled for the scripted model."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.rollout.reading import (
    HostAnswers,
    read,
)
from rapo_jax.rollout.slots import (
    Phase,
    RolloutInputs,
    fill,
    open_slots,
)
from rapo_jax.rollout.thinking import (
    step_of,
    think,
    think_token,
)

ROWS, TOKENS, WIDTH = 7, 24, 10


def inputs_of(rows, *, hybrid=True, **changes):
    """Greedy, and every boundary of every row retrieves; with changes."""
    inputs = RolloutInputs(
        key=jax.random.key(0),
        row_B=jnp.arange(rows, dtype=jnp.int32),
        hybrid_B=jnp.full(rows, hybrid),
        probability=jnp.float32(1),
        noise=jnp.float32(0),
        temperature=jnp.float32(0),
        last_retrieval=jnp.int32(99),
    )
    return inputs.replace(**changes)


class Programs:
    """The parts of a turn, compiled for the scripted model."""

    def __init__(self, stage, *, chunk=WIDTH, slots=0, rows=ROWS):
        self.settings = dataclasses.replace(
            stage.settings,
            max_tokens=TOKENS,
            prompt_tokens=WIDTH,
            step_tokens=WIDTH,
            absorb_chunk=chunk,
        )
        self.stage, self.rows = stage, rows
        how = {"slots": slots, "group_size": 1}
        self._open = jax.jit(partial(open_slots, stage.model, self.settings, **how))
        self._think = jax.jit(partial(think, stage.model, self.settings, stage.boundary))
        self._finish = jax.jit(self._steps)
        self._read = jax.jit(partial(read, stage.model, self.settings))

    def open(self, params, *prompts):
        prompts = (*prompts, *["V"] * (self.rows - len(prompts)))
        return self._open(params, self.stage.span(*prompts, width=WIDTH))

    def think(self, params, slots):
        return self._think(params, inputs_of(self.rows), slots)

    def finish_steps(self, params, slots):
        """Samples until no slot thinks, whatever the host could do meanwhile."""
        return self._finish(params, inputs_of(self.rows), fill(slots))

    def _steps(self, params, inputs, slots):
        token = partial(think_token, self.stage.model, self.settings, self.stage.boundary, params)
        return jax.lax.while_loop(
            lambda now: now.has(Phase.THINKING).any(), partial(token, inputs), slots
        )

    def read(self, params, slots, *observations, traces=(), ready=None, healthy=None):
        """Reads texts for the first slots; unless said otherwise, those are ready and healthy."""
        count = len(slots.row_U)
        each = np.arange(count) < len(observations)

        def span(texts):
            return self.stage.span(*texts, *[""] * (count - len(texts)), width=WIDTH)

        texts = HostAnswers(
            each if ready is None else np.array(ready),
            np.ones(count, bool) if healthy is None else np.array(healthy),
            span(observations),
            span(traces),
        )
        return self._read(params, slots, texts)

    def step_of(self, slots):
        return jax.device_get(step_of(self.settings, slots))


def lengths(slots):
    """Of each row, running or ended; there is a slot for each."""
    free_U = slots.phase_U == Phase.FREE
    return np.where(free_U, slots.trajectory.length_B, slots.length_U)


def same(found, wanted, index=...):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(left[index], right[index])
