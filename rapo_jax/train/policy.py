"""Weights of a policy: fresh ones, a Hugging Face folder's, a cold start's or a finished run's."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.hf import check_tensors, load_params
from rapo_jax.model.hf_config import model_settings
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.sharding import layout, put, replicated, state_layout
from rapo_jax.model.transformer import init_params
from rapo_jax.train.checkpoint import Checkpoints
from rapo_jax.train.run import Run, stage_key
from rapo_jax.types import Params, TrainState

INIT_STAGE = 100
"""Stage number of the key that draws fresh parameters."""


def fresh_state(run: Run, optimizer: optax.GradientTransformation) -> TrainState:
    """The weights of `model.folder`, or random ones, and empty moments."""
    if run.model.folder:
        params = read_folder(run.model, run.mesh, dtype="float32")
    else:
        params = init_params(run.model, stage_key(run.settings, INIT_STAGE))
    return start_state(run, params, optimizer)


def start_state(run: Run, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 of a training from `params`: weights and moments in the training layout."""
    where = layout(run.mesh, run.model, params, name="training")
    everywhere = replicated(run.mesh)
    moments = state_layout(run.mesh, optimizer, params, where)
    params = put(params, where)
    opt_state = jax.jit(optimizer.init, out_shardings=moments)(params)
    return TrainState(params, opt_state, put(jnp.int32(0), everywhere))


def read_folder(model: ModelSettings, mesh: Mesh, *, dtype: str) -> Params:
    """The weights of `model.folder` in the training layout, linear maps and embeddings in `dtype`.

    Raises:
        ValueError: a tensor is missing, left over, mis-shaped or not finite; names it.
    """
    started = time.perf_counter()
    tensors = Tensors(model.folder)
    for line in check_tensors(tensors, model):
        print(f"[model] {line}", flush=True)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    shardings = layout(mesh, model, shapes, name="training")
    params = load_params(tensors, model, shardings=shardings, dtype=dtype)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"[model] {model.folder}: {count / 1e6:,.1f} million parameters as {dtype}, read in "
        f"{time.perf_counter() - started:.1f} s",
        flush=True,
    )
    return params


def load_policy(run: Run, folder: Path) -> Params:
    """Parameters of the newest checkpoint of a cold start folder or a run's workdir.

    Where no cold start was trained, that of a run with `model.folder` is this folder.

    Raises:
        ValueError: there is no checkpoint, or it is of another shape than `config.model`.
    """
    params = restore(folder)
    if params is not None:
        check_shape(run.model, params, folder)
        return put(params, layout(run.mesh, run.model, params, name="training"))
    if run.model.folder and folder == run.cold_start:
        return read_folder(run.model, run.mesh, dtype="float32")
    raise ValueError(f"{folder}: no checkpoint there; run the stage that makes it first")


def restore(folder: Path) -> Params | None:
    """The newest parameters in FOLDER/checkpoints as numpy arrays, if there are any."""
    if not (folder / "checkpoints").is_dir():
        return None
    store = Checkpoints(folder / "checkpoints", keep=1_000)
    try:
        return None if store.latest() is None else store.restore_params()
    finally:
        store.close()


def check_shape(model: ModelSettings, params: Params, folder: Path) -> None:
    """Refuses parameters of another shape than `config.model`, naming the first that differs."""
    wanted = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    named, _ = jax.tree_util.tree_flatten_with_path(wanted)
    found = dict(jax.tree_util.tree_flatten_with_path(params)[0])
    for path in found.keys() - dict(named).keys():
        raise ValueError(
            f"{folder}: parameter {jax.tree_util.keystr(path)} is not part of config.model; use "
            "the model settings that the checkpoint was made with"
        )
    for path, leaf in named:
        shape = found[path].shape if path in found else None
        if shape != leaf.shape:
            raise ValueError(
                f"{folder}: parameter {jax.tree_util.keystr(path)} has shape {shape}, config.model "
                f"needs {leaf.shape}; use the model settings that the checkpoint was made with"
            )


class Weights(NamedTuple):
    """The newest weights of a workdir, of which those of a folder have yet to be read."""

    model: ModelSettings
    restored: Params | None
    origin: Path

    def load(self, mesh: Mesh, *, dtype: str) -> Params:
        """In the training layout; those of a folder with linear maps and embeddings in `dtype`."""
        if self.restored is None:
            return read_folder(self.model, mesh, dtype=dtype)
        where = layout(mesh, self.model, self.restored, name="training")
        return put(self.restored, where)


def newest_weights(settings: Settings, workdir: Path) -> Weights:
    """Those of RL, else of the cold start, else of `model.folder`; no run is opened for them.

    Raises:
        ValueError: there are none, or they are of another shape than `config.model`.
    """
    model = model_settings(settings.model)
    for folder in (workdir, Path(settings.sft.folder or workdir / "coldstart")):
        params = restore(folder)
        if params is not None:
            # A run takes the vocabulary of its tokenizer, which need not be at hand here.
            model = dataclasses.replace(model, vocab=params["embed_VD"].shape[0])
            check_shape(model, params, folder)
            return Weights(model, params, folder)
    if not model.folder:
        raise ValueError(
            f"model.folder='': there are no weights, and no checkpoint in {str(workdir)!r} either; "
            "name a Hugging Face folder, or the workdir of a run"
        )
    return Weights(model, None, Path(model.folder))
