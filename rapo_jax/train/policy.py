"""Weights of a policy: fresh ones, a Hugging Face folder's, a cold start's or a finished run's.

With `model.lora.rank` the weights of `model.folder`, or else those of the cold start, are a frozen
base, and what is trained and saved are adapters on it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.hf_config import model_settings
from rapo_jax.model.lora import ADAPTERS, attach, init_adapters, trained
from rapo_jax.model.sharding import layout, place, replicated, state_layout
from rapo_jax.model.transformer import init_params
from rapo_jax.train.run import Run, stage_key
from rapo_jax.train.weights import (
    Saved,
    check_adapters,
    check_shape,
    frozen,
    read_base,
    read_folder,
    restore,
    with_saved_adapters,
)
from rapo_jax.types import Params, TrainState

INIT_STAGE = 100
"""Stage number of the key that draws fresh parameters."""
ADAPTER_STAGE = 101
"""That of the key that draws fresh adapters."""


def fresh_state(run: Run, optimizer: optax.GradientTransformation) -> TrainState:
    """The weights of `model.folder`, with adapters where there are to be some, or random ones.

    Random ones are no base to adapt: a cold start without a folder trains all weights.
    """
    if run.model.folder:
        return start_state(run, load_folder(run), optimizer)
    # One program: op by op, a hundred tiny ones are compiled, most for outputs nobody reads.
    fresh = jax.jit(init_params, static_argnums=0)
    params = fresh(run.model, stage_key(run.settings, INIT_STAGE))
    return start_state(run, params, optimizer)


def start_state(run: Run, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 of a training from `params`: weights and moments in the training layout."""
    where = layout(run.mesh, run.model, params, name="training")
    everywhere = replicated(run.mesh)
    part = trained(params)
    moments = state_layout(run.mesh, optimizer, part, trained(where))
    params = place(params, where)
    opt_state = jax.jit(optimizer.init, out_shardings=moments)(trained(params))
    return TrainState(params, opt_state, place(jnp.int32(0), everywhere))


def policy_shapes(model: ModelSettings) -> Params:
    """Shapes of the parameters that RL trains: with adapters where there are to be some."""

    def policy(key: jax.Array) -> Params:
        params = init_params(model, key)
        return attach(model, params, init_adapters(model, key)) if model.lora.rank else params

    return jax.eval_shape(lambda: policy(jax.random.key(0)))


def load_folder(run: Run) -> Params:
    """`model.folder`, with fresh adapters where there are to be some."""
    if run.model.lora.rank:
        return with_fresh_adapters(run, read_folder(run.model, run.mesh, dtype=run.model.dtype))
    return read_folder(run.model, run.mesh, dtype="float32")


def with_fresh_adapters(run: Run, params: Params) -> Params:
    """The base frozen, and adapters that change nothing yet; in the training layout."""
    key = stage_key(run.settings, ADAPTER_STAGE)
    return frozen(run.model, run.mesh, params, init_adapters(run.model, key))


def load_policy(run: Run, folder: Path) -> Params:
    """Parameters of the newest checkpoint of a cold start folder or a run's workdir.

    Where no cold start was trained, that of a run with `model.folder` is this folder. Where there
    are to be adapters, the parameters have some: fresh ones, if none were saved.

    Raises:
        ValueError: there is no checkpoint, or it is of another shape than `config.model`, or its
        adapters belong to another base.
    """
    model, mesh = run.model, run.mesh
    saved = restore(folder)
    if saved is not None and ADAPTERS in saved.params:
        check_adapters(model, saved, folder)
        base = read_base(model, mesh, folder, (folder / "coldstart", run.cold_start))
        return with_saved_adapters(model, mesh, base, saved, folder)
    if saved is not None:
        check_shape(model, saved.params, folder)
        params = place(saved.params, layout(mesh, model, saved.params, name="training"))
        return with_fresh_adapters(run, params) if model.lora.rank else params
    if model.folder and folder == run.cold_start:
        return load_folder(run)
    raise ValueError(f"{folder}: no checkpoint there; run the stage that makes it first")


class Weights(NamedTuple):
    """The newest weights of a workdir, of which those of a folder have yet to be read."""

    model: ModelSettings
    base: Params | None
    """Restored ones; None are those of `model.folder`."""
    adapters: Saved | None
    origin: Path

    def load(self, mesh: Mesh, *, dtype: str) -> Params:
        """In the training layout; those of a folder with linear maps and embeddings in `dtype`.

        Raises:
            ValueError: adapters were saved, and the base is not the one they were trained on.
        """
        if self.base is not None:
            base = place(self.base, layout(mesh, self.model, self.base, name="training"))
        else:
            kind = self.model.dtype if self.adapters else dtype
            base = read_folder(self.model, mesh, dtype=kind)
        if self.adapters is None:
            return base
        return with_saved_adapters(self.model, mesh, base, self.adapters, self.origin)


def newest_weights(settings: Settings, workdir: Path) -> Weights:
    """Those of RL, else of the cold start, else of `model.folder`; no run is opened for them.

    Raises:
        ValueError: there are none, or they are of another shape than `config.model`.
    """
    model = model_settings(settings.model)
    adapters: Saved | None = None
    origin = Path(model.folder)
    for folder in (workdir, Path(settings.sft.folder or workdir / "coldstart")):
        saved = restore(folder)
        if saved is None or (adapters and ADAPTERS in saved.params):
            continue
        if ADAPTERS in saved.params:
            adapters, origin = saved, folder
            continue  # to the cold start that they were trained on, if not on model.folder
        # A run takes the vocabulary of its tokenizer, which need not be at hand here.
        model = dataclasses.replace(model, vocab=saved.params["embed_VD"].shape[0])
        check_shape(model, saved.params, folder)
        if adapters:
            check_adapters(model, adapters, origin)
        return Weights(model, saved.params, adapters, origin if adapters else folder)
    if not model.folder:
        raise ValueError(
            f"model.folder='': there are no weights, and no checkpoint in {str(workdir)!r} either; "
            "name a Hugging Face folder, or the workdir of a run"
        )
    if adapters:
        check_adapters(model, adapters, origin)
    return Weights(model, None, adapters, origin)
