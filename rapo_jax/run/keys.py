"""Random keys of a run, and numpy's seeds: a number for each purpose, so that no two share one."""

from __future__ import annotations

import zlib
from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np

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


class HostKey(IntEnum):
    """What numpy draws on the host in training: the number after the run's seed."""

    REPLAY = 0x5E9
    """Past groups that complete a batch."""
    SFT_ORDER = 0x5F7
    """Epochs of the cold start."""
    SFT_BATCHES = 0x5F8
    """The order of batches of similar length."""
    AGENT_TAPES = 0x70F
    """Trajectories of the buffer in groups."""
    IMITATION = 0x1317
    """Examples of the SFT baseline."""
    EXPERT = 0x1E47
    """Decisions of the scripted expert that fills the buffer."""


def host_rng(seed: int, purpose: HostKey, *numbers: int) -> np.random.Generator:
    """Numpy's random numbers of one purpose, of a step, an epoch or a part as `numbers` say."""
    return np.random.default_rng([seed, purpose, *numbers])


def agent_seed(seed: int, purpose: HostKey) -> int:
    """The seed of a scripted agent's trajectories in the run of this seed.

    Larger than the seeds of the demonstrator, 2 * seed and 2 * seed + 1: both agents answer the
    same questions.
    """
    return (purpose << 32) + seed


FURTHER_BATCHES = 2**16
"""Added to the number of a step's further batch before it is folded in: smaller numbers are those
of what a rollout draws, `rollout.slots.Draws`, which the first batch folds into the same key."""


def batch_key(key: jax.Array, number: int) -> jax.Array:
    """The key of batch `number` of a step whose key is `key`."""
    return jax.random.fold_in(key, FURTHER_BATCHES + number) if number else key


def stage_key(settings: Settings, stage: StageKey) -> jax.Array:
    """The random key of one purpose in the run of this seed."""
    return jax.random.fold_in(jax.random.key(settings.seed), jnp.uint32(stage))


def named_key(settings: Settings, stage: StageKey, name: str) -> jax.Array:
    """That of one of a purpose's suites or checkpoints, by its name."""
    return jax.random.fold_in(stage_key(settings, stage), zlib.crc32(name.encode()))
