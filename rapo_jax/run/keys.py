"""Random keys of a run: one number for each purpose, so that no two purposes share a key."""

from __future__ import annotations

from enum import IntEnum

import jax
import jax.numpy as jnp

from rapo_jax.config import Settings


class StageKey(IntEnum):
    """Purposes of random keys; a step, or the first row of a batch, is folded in once."""

    RL = 2
    """Rollouts and the order of mini-batches."""
    EVALUATE = 3
    """Held-out questions, drawn from only at a temperature above 0."""
    BUFFER = 4
    """Checkpoints that fill the Step-Trace Buffer."""
    INIT = 100
    """Fresh parameters."""
    ADAPTERS = 101
    """Fresh adapters."""
    GATE_ONE_HOP = 102
    GATE_FOLLOW = 103
    SUITES = 200
    """Samples of the evaluation suites."""
    NOTEBOOK = 300
    """Rollouts of a notebook that train nothing."""


def stage_key(settings: Settings, stage: StageKey) -> jax.Array:
    """The random key of one purpose in the run of this seed."""
    return jax.random.fold_in(jax.random.key(settings.seed), jnp.uint32(stage))
