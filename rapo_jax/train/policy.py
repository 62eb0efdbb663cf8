"""Train states: fresh ones, and the parameters of a finished cold start or run."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from rapo_jax.model.sharding import place, replicated
from rapo_jax.model.transformer import init_params
from rapo_jax.train.checkpoint import Checkpoints
from rapo_jax.train.run import Run, stage_key
from rapo_jax.types import Params, TrainState

INIT_STAGE = 100
"""Stage number of the key that draws fresh parameters."""


def fresh_state(run: Run, optimizer: optax.GradientTransformation) -> TrainState:
    """Random parameters and empty moments, on every device."""
    params = init_params(run.model, stage_key(run.settings, INIT_STAGE))
    return start_state(run, params, optimizer)


def start_state(run: Run, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 of a training from `params`."""
    state = TrainState(params, optimizer.init(params), jnp.int32(0))
    return place(state, replicated(run.mesh))


def load_policy(run: Run, folder: Path) -> Params:
    """Parameters of the newest checkpoint of a cold start folder or a run's workdir.

    Raises:
        ValueError: there is no checkpoint, or it is of another shape than `config.model`.
    """
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        raise ValueError(f"{folder}: no checkpoint there; run the stage that makes it first")
    store = Checkpoints(checkpoints, keep=1_000)
    try:
        params = store.restore_params()
        check_shape(run, params, folder)
        return place(params, replicated(run.mesh))
    finally:
        store.close()


def check_shape(run: Run, params: Params, folder: Path) -> None:
    """Refuses parameters of another shape than `config.model`, naming the first that differs."""
    wanted = jax.eval_shape(lambda: init_params(run.model, jax.random.key(0)))
    named, _ = jax.tree_util.tree_flatten_with_path(wanted)
    found = dict(jax.tree_util.tree_flatten_with_path(params)[0])
    for path, leaf in named:
        shape = found[path].shape if path in found else None
        if shape != leaf.shape:
            raise ValueError(
                f"{folder}: parameter {jax.tree_util.keystr(path)} has shape {shape}, config.model "
                f"needs {leaf.shape}; use the model settings that the checkpoint was made with"
            )
