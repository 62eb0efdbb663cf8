"""Weights of a policy: fresh ones, a Hugging Face folder's, a cold start's or a finished run's.

With `model.lora.rank` the weights of `model.folder`, or else those of the cold start, are a frozen
base, and what is trained and saved are adapters on it.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.hf_config import model_settings
from rapo_jax.model.lora import attach, init_adapters, trained
from rapo_jax.model.sharding import layout, place, replicated, state_layout
from rapo_jax.model.transformer import init_params
from rapo_jax.run.folders import COLD_START, cold_start_folder
from rapo_jax.run.keys import StageKey, stage_key
from rapo_jax.run.run import Run
from rapo_jax.run.weights import Weights, check_shape, newest_step, saved_weights, with_adapters
from rapo_jax.types import Params, TrainState


def fresh_state(run: Run, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 from the weights of `model.folder`, or from random ones without a folder.

    Adapters are never put onto random weights: without a folder the cold start trains all weights.
    """
    if run.model.folder:
        return start_state(run, _policy(run, _folder_weights(run.model)), optimizer)
    # One program: op by op, a hundred tiny ones are compiled, most for outputs nobody reads.
    fresh = jax.jit(init_params, static_argnums=0)
    params = fresh(run.model, stage_key(run.settings, StageKey.INIT))
    return start_state(run, params, optimizer)


def start_state(run: Run, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 of a training from `params`: weights and moments in the training layout."""
    where = layout(run.mesh, run.model, params, name="training")
    moments = state_layout(run.mesh, optimizer, trained(params), trained(where))
    params = place(params, where)
    opt_state = jax.jit(optimizer.init, out_shardings=moments)(trained(params))
    return TrainState(params, opt_state, place(jnp.int32(0), replicated(run.mesh)))


def policy_shapes(model: ModelSettings) -> Params:
    """Shapes of the parameters of RL, with adapters where `model.lora` asks for them."""

    def policy(key: jax.Array) -> Params:
        params = init_params(model, key)
        return attach(model, params, init_adapters(model, key)) if model.lora.rank else params

    return jax.eval_shape(lambda: policy(jax.random.key(0)))


def newest_folder(settings: Settings, workdir: Path) -> tuple[Path, str]:
    """The folder of the newest weights for `load_policy`, and a name of these weights.

    These are the newest checkpoint of RL, else of the cold start, else `model.folder`.

    Raises:
        ValueError: there are none.
    """
    cold_start = cold_start_folder(settings, workdir)
    for folder, name in ((workdir, "checkpoint"), (cold_start, "cold start")):
        step = newest_step(folder)
        if step is not None:
            return folder, f"{name} of step {step}"
    if not settings.model.folder:
        raise ValueError(
            f"model.folder='': there are no weights, and no checkpoint in {str(workdir)!r} either; "
            "name a Hugging Face folder, or the workdir of a run"
        )
    return cold_start, settings.model.folder


def newest_weights(settings: Settings, workdir: Path) -> Weights:
    """The weights of `newest_folder`; needs no open run.

    Raises:
        ValueError: there are none, or they have another shape than `config.model`.
    """
    model = model_settings(settings.model)
    folder, _ = newest_folder(settings, workdir)
    bases = (cold_start_folder(settings, workdir),)
    return saved_weights(model, folder, bases=bases) or _folder_weights(model)


def load_policy(run: Run, folder: Path) -> Params:
    """Parameters of the newest checkpoint in `folder`, a cold start or the workdir of a run.

    `model.folder` takes the place of a cold start that was not trained. With `model.lora.rank` the
    parameters have adapters: fresh ones, if none were saved.

    Raises:
        ValueError: there is no checkpoint, it has another shape than `config.model`, or its
        adapters belong to another base.
    """
    weights = saved_weights(run.model, folder, bases=(folder / COLD_START, run.cold_start))
    if weights is None and run.model.folder and folder == run.cold_start:
        weights = _folder_weights(run.model)
    if weights is None:
        remedies = {
            run.cold_start: "run the stage 'sft' first, or name a cold start (sft.folder)",
            run.workdir: "run the stage 'rl' first",
        }
        other = "name a workdir, a cold start or a Hugging Face folder"
        raise ValueError(f"{folder}: no checkpoint there; {remedies.get(folder, other)}")
    if weights.base is not None:
        check_shape(run.model, weights.base, folder)
    return _policy(run, weights)


def _folder_weights(model: ModelSettings) -> Weights:
    return Weights(model, None, None, Path(model.folder))


def _policy(run: Run, weights: Weights) -> Params:
    """Weights in the training layout; with `model.lora.rank`, fresh adapters where none are saved.

    Fresh adapters change nothing: one of their two factors is zero.
    """
    model = run.model
    params = weights.load(run.mesh, dtype=model.dtype if model.lora.rank else "float32")
    if not model.lora.rank or weights.adapters is not None:
        return params
    adapters = init_adapters(model, stage_key(run.settings, StageKey.ADAPTERS))
    return with_adapters(model, run.mesh, params, adapters)
