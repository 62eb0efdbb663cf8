"""Updates leave nothing behind in the memory of the host."""

from __future__ import annotations

import dataclasses
import gc
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rapo_jax.model.sharding import make_mesh, place, replicated
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, TrainState


def test_further_updates_leave_no_object_behind(house, tapes):
    mesh, optimizer = make_mesh(jax.devices()[:1]), optax.adam(1e-2)
    state = TrainState(house.params, optimizer.init(house.params), jnp.int32(0))
    state = place(jax.tree.map(jnp.copy, state), replicated(mesh))  # updates give states away
    rl = dataclasses.replace(house.settings.rl, buckets=(96,), micro_tokens=32 * 96)
    updater = Updater(rapo_loss(house.model, rl), optimizer, state, mesh=mesh, rl=rl)
    one_B = np.ones(len(tapes.length_B), np.float32)
    batch = Batch(tapes.token_BT, tapes.source_BT, tapes.logp_BT, one_B, 0 * one_B)
    counts = []
    for _ in range(6):
        state, _ = updater.update(state, batch, tapes.length_B.astype(np.int64), None)
        gc.collect()
        counts.append(sum(isinstance(x, inspect.Signature) for x in gc.get_objects()))
    assert len(set(counts[2:])) == 1  # JAX makes a signature for each function that it wraps
