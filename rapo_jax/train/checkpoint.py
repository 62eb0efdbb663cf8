"""Checkpoints through Orbax: parameters, optimizer, step, and what a run needs to resume.

Where there are adapters, only they are saved. The metadata then holds the identity of their base
and the settings that their effect depends on: rank, alpha and targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from rapo_jax.config import LoraSettings
from rapo_jax.model.lora import ADAPTERS, identity, trained, with_trained
from rapo_jax.types import Array, Params, TrainState

METADATA = "about"
"""Name of the metadata on disk, which older checkpoints have too."""

Metadata: TypeAlias = dict[str, Any]
"""JSON: data position, buffer identity, counters."""

_identity = jax.jit(identity)


def base_identity(params: Params) -> list[int]:
    """Identity of the frozen base of parameters with adapters; all processes must call it."""
    return [int(number) for number in np.asarray(_identity(params))]


def _lora_metadata(lora: LoraSettings) -> dict[str, object]:
    """The settings that saved adapters depend on; merging them changes nothing in them."""
    return {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets)}


def check_lora(lora: LoraSettings, metadata: Metadata, folder: Path) -> None:
    """Refuses saved adapters that were trained with another rank, alpha or other targets.

    Checkpoints of versions that did not save these are accepted.
    """
    saved = metadata.get("lora") or {}
    for key, value in _lora_metadata(lora).items() if saved else ():
        if saved[key] != value:
            raise ValueError(
                f"model.lora.{key}={getattr(lora, key)!r}: the adapters in {folder} were trained "
                f"with {saved[key]!r}; set it back, or start anew"
            )


class Checkpoints:
    """Numbered checkpoints in a folder, of which the newest `keep` (None: all) are kept.

    A save that fails loses nothing: the former checkpoint can still be loaded, and the error is
    raised. Several processes open, save and restore together; another number of processes may
    restore what they saved. `lora` is needed to save or restore a state with adapters.
    """

    def __init__(
        self, folder: Path, *, keep: int | None = None, lora: LoraSettings | None = None
    ) -> None:
        import orbax.checkpoint as ocp

        self._ocp, self._lora = ocp, lora
        # Orbax takes relative paths and fails late, so the path is made absolute here.
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, metadata: Mapping[str, object]) -> None:
        """Saves and waits, unless `step` is saved already. `metadata` is small JSON."""
        if step in self._manager.all_steps():
            return
        args, metadata = self._ocp.args, dict(metadata)
        if ADAPTERS in state.params:
            assert self._lora is not None, "adapters are saved with their settings"
            metadata |= {"base": base_identity(state.params), "lora": _lora_metadata(self._lora)}
        items = {"state": args.StandardSave(_plain(state)), METADATA: args.JsonSave(metadata)}
        self._manager.save(step, args=args.Composite(**items))
        self._manager.wait_until_finished()

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, Metadata]:
        """State and metadata of the newest checkpoint (or that of `step`), placed like `state`.

        Raises:
            ValueError: its adapters were trained on another base than that of `state`, or with
            another rank, alpha or targets.
        """
        step = self.latest() if step is None else step
        if ADAPTERS in state.params:  # before arrays of other shapes are read
            assert self._lora is not None, "adapters are restored with their settings"
            check_lora(self._lora, self.metadata(step), self._manager.directory)
        args = self._ocp.args
        shapes = jax.tree.map(_abstract, _plain(state))
        items = {"state": args.StandardRestore(shapes), METADATA: args.JsonRestore()}
        restored = self._manager.restore(step, args=args.Composite(**items))
        metadata, saved = dict(restored[METADATA]), restored["state"]
        metadata.pop("lora", None)
        base = base_identity(state.params) if ADAPTERS in state.params else None
        if metadata.pop("base", None) != base:
            raise ValueError(
                f"{self._manager.directory}: its adapters were trained on other weights than those "
                "of model.folder or the cold start now; give those back, or start anew"
            )
        params = with_trained(state.params, saved["params"])
        return TrainState(params, saved["opt_state"], saved["step"]), metadata

    def metadata(self, step: int | None = None) -> Metadata:
        """Metadata of the newest checkpoint (or that of `step`), `base` and `lora` included."""
        args, step = self._ocp.args, self.latest() if step is None else step
        items = {METADATA: args.JsonRestore()}
        return dict(self._manager.restore(step, args=args.Composite(**items))[METADATA])

    def restore_params(self, step: int | None = None) -> Params:
        """The newest parameters (or those of `step`) alone, as numpy arrays of any shape.

        Every process reads all of them, whatever devices and processes saved them.
        """
        ocp, step = self._ocp, self.latest() if step is None else step
        path = self._manager.directory / str(step) / "state"
        handler = ocp.PyTreeCheckpointHandler()
        saved = {"params": handler.metadata(path).tree["params"]}
        restore = ocp.args.PyTreeRestore(
            item=saved,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved),
            partial_restore=True,
        )
        return handler.restore(path, args=restore)["params"]

    def close(self) -> None:
        self._manager.close()


def _plain(state: TrainState) -> dict[str, Params]:
    return {"params": trained(state.params), "opt_state": state.opt_state, "step": state.step}


def _abstract(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=getattr(x, "sharding", None))
