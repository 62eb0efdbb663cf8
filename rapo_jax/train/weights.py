"""Weights as they lie in files: a Hugging Face folder, a checkpoint, adapters and their base."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings
from rapo_jax.model.hf import check_tensors, load_params
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.lora import ADAPTERS, attach, init_adapters, rank_of
from rapo_jax.model.sharding import layout, place
from rapo_jax.model.transformer import init_params
from rapo_jax.train.checkpoint import Checkpoints, base_identity, check_described
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


def frozen(model: ModelSettings, mesh: Mesh, params: Params, adapters: Params) -> Params:
    """Parameters with adapters in the training layout."""
    shapes = jax.eval_shape(lambda *trees: attach(model, *trees), params, adapters)
    where = layout(mesh, model, shapes, name="training")
    adapters = place(adapters, where[ADAPTERS])
    make = jax.jit(lambda *trees: attach(model, *trees), out_shardings=where)
    return make(params, adapters)


class Saved(NamedTuple):
    """The newest parameters of a folder as numpy arrays; adapters come without their base."""

    params: Params
    about: dict[str, Any]


def restore(folder: Path) -> Saved | None:
    """What FOLDER/checkpoints holds, if anything."""
    if not (folder / "checkpoints").is_dir():
        return None
    store = Checkpoints(folder / "checkpoints", keep=1_000)
    try:
        if store.latest() is None:
            return None
        params = store.restore_params()
        return Saved(params, store.about() if ADAPTERS in params else {})
    finally:
        store.close()


def read_base(
    model: ModelSettings, mesh: Mesh, folder: Path, cold_starts: tuple[Path, ...]
) -> Params:
    """What adapters saved in `folder` were trained on: a cold start of all weights, or else
    `model.folder`."""
    for cold_start in cold_starts:
        saved = restore(cold_start)
        if saved is not None and ADAPTERS not in saved.params:
            check_shape(model, saved.params, cold_start)
            return place(saved.params, layout(mesh, model, saved.params, name="training"))
    if model.folder:
        return read_folder(model, mesh, dtype=model.dtype)
    raise ValueError(
        f"{folder}: it holds adapters alone, and the cold start they were trained on is not in "
        f"{' or '.join(map(str, dict.fromkeys(cold_starts)))}; name it: sft.folder"
    )


def with_saved_adapters(
    model: ModelSettings, mesh: Mesh, base: Params, saved: Saved, folder: Path
) -> Params:
    """Saved adapters on their base, in the training layout.

    Raises:
        ValueError: it is not the base that they were trained on.
    """
    params = frozen(model, mesh, base, saved.params[ADAPTERS])
    if base_identity(params) != saved.about["base"]:
        named = f"model.folder={model.folder!r}" if model.folder else "sft.folder: the cold start"
        raise ValueError(
            f"{named}: the adapters in {folder} were trained on other weights, or with another "
            "model.dtype; give those back, or start anew"
        )
    return params


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
    check_described(model.lora, saved.about, folder)


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
