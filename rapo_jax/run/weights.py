"""Weights on disk: Hugging Face folders, checkpoints, adapters and the base they belong to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings
from rapo_jax.model.hf import check_tensors, load_params
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.lora import ADAPTERS, attach, init_adapters, rank_of
from rapo_jax.model.sharding import layout, place
from rapo_jax.model.transformer import init_params
from rapo_jax.run.checkpoint import Checkpoints, Metadata, base_identity, check_lora
from rapo_jax.types import Params


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


def with_adapters(model: ModelSettings, mesh: Mesh, params: Params, adapters: Params) -> Params:
    """Adds adapters to a base, which is frozen; returns both in the training layout."""
    shapes = jax.eval_shape(lambda *trees: attach(model, *trees), params, adapters)
    where = layout(mesh, model, shapes, name="training")
    adapters = place(adapters, where[ADAPTERS])
    make = jax.jit(lambda *trees: attach(model, *trees), out_shardings=where)
    return make(params, adapters)


class Saved(NamedTuple):
    """The parameters of a checkpoint as numpy arrays; adapters come without their base."""

    params: Params
    metadata: Metadata
    """Read for adapters alone."""


def newest_step(folder: Path) -> int | None:
    """Step of the newest checkpoint in FOLDER/checkpoints, None without one."""
    if not (folder / "checkpoints").is_dir():
        return None
    with closing(Checkpoints(folder / "checkpoints")) as store:
        return store.latest()


def restore(folder: Path) -> Saved | None:
    """The newest checkpoint in FOLDER/checkpoints, None without one."""
    if newest_step(folder) is None:
        return None
    with closing(Checkpoints(folder / "checkpoints")) as store:
        params = store.restore_params()
        return Saved(params, store.metadata() if ADAPTERS in params else {})


class Weights(NamedTuple):
    """Weights that are found but not yet placed; a Hugging Face folder is not yet read."""

    model: ModelSettings
    base: Params | None
    """Restored ones; None for those of `model.folder`."""
    adapters: Saved | None
    origin: Path

    def load(self, mesh: Mesh, *, dtype: str) -> Params:
        """Loads the weights in the training layout.

        From a Hugging Face folder, linear maps and embeddings are in `dtype`.

        Raises:
            ValueError: adapters were saved, and the base is not the one they were trained on.
        """
        model = self.model
        if self.base is not None:
            params = place(self.base, layout(mesh, model, self.base, name="training"))
        else:
            params = read_folder(model, mesh, dtype=model.dtype if self.adapters else dtype)
        if self.adapters is None:
            return params
        params = with_adapters(model, mesh, params, self.adapters.params[ADAPTERS])
        if base_identity(params) != self.adapters.metadata["base"]:
            base = (
                f"model.folder={model.folder!r}" if model.folder else "sft.folder: the cold start"
            )
            raise ValueError(
                f"{base}: the adapters in {self.origin} were trained on other weights, or with "
                "another model.dtype; use those weights again, or start a new --workdir"
            )
        return params


def saved_weights(model: ModelSettings, folder: Path, *, bases: Sequence[Path]) -> Weights | None:
    """The newest checkpoint in FOLDER/checkpoints, None without one.

    Adapters go onto the first of the folders `bases` that has a checkpoint of all weights, or else
    onto `model.folder`. The vocabulary is that of the weights: the tokenizer is not read here.

    Raises:
        ValueError: the weights have another shape than `model`, the adapters are not those of
        `model.lora`, or their base is missing.
    """
    saved, adapters = restore(folder), None
    if saved is None:
        return None
    if ADAPTERS in saved.params:
        check_adapters(model, saved, folder)
        adapters, saved = saved, None
        for base in bases:
            saved = saved or _all_weights(base)
        if saved is None and not model.folder:
            raise ValueError(
                f"{folder}: it holds adapters alone, and the cold start they were trained on is "
                f"not in {' or '.join(map(str, dict.fromkeys(bases)))}; name it: sft.folder"
            )
    if saved is None:
        return Weights(model, None, adapters, folder)
    model = dataclasses.replace(model, vocab=saved.params["embed_VD"].shape[0])
    check_shape(model, saved.params, folder)
    return Weights(model, saved.params, adapters, folder)


def _all_weights(folder: Path) -> Saved | None:
    saved = restore(folder)
    return saved if saved and ADAPTERS not in saved.params else None


def check_adapters(model: ModelSettings, saved: Saved, folder: Path) -> None:
    """Refuses saved adapters of another rank, alpha or other kernels than `model.lora`."""
    adapters = saved.params[ADAPTERS]
    wanted: Params = {}
    if model.lora.rank:
        wanted = jax.eval_shape(lambda: init_adapters(model, jax.random.key(0)))
    shapes = [jax.tree.map(np.shape, tree) for tree in (adapters, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"model.lora.rank={model.lora.rank}: {folder} holds adapters of rank "
            f"{rank_of(adapters)} for {', '.join(adapters)}; use the model.lora and the model that "
            "they were trained with"
        )
    check_lora(model.lora, saved.metadata, folder)


def check_shape(model: ModelSettings, params: Params, folder: Path) -> None:
    """Refuses parameters of another shape than `config.model`, naming the first that differs."""
    expected = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    leaves = dict(jax.tree_util.tree_flatten_with_path(params)[0])
    named = dict(jax.tree_util.tree_flatten_with_path(expected)[0])
    for path in leaves.keys() - named.keys():
        raise ValueError(
            f"{folder}: parameter {jax.tree_util.keystr(path)} is not part of config.model; use "
            "the model settings that the checkpoint was made with"
        )
    for path, leaf in named.items():
        shape = leaves[path].shape if path in leaves else None
        if shape != leaf.shape:
            raise ValueError(
                f"{folder}: parameter {jax.tree_util.keystr(path)} has shape {shape}, config.model "
                f"needs {leaf.shape}; use the model settings that the checkpoint was made with"
            )
