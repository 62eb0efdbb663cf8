"""Checkpoints: parameters, optimizer, step, and everything a run needs to go on, through Orbax.

Of parameters with adapters the adapters alone are saved, the identity of their base and how they
count beside it: rank, alpha and targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rapo_jax.config import LoraSettings
from rapo_jax.model.lora import ADAPTERS, identity, trained, with_trained
from rapo_jax.types import Params, TrainState

_identity = jax.jit(identity)


def base_identity(params: Params) -> list[int]:
    """That of the frozen base of parameters with adapters; every process must ask for it."""
    return [int(number) for number in np.asarray(_identity(params))]


def described(lora: LoraSettings) -> dict[str, Any]:
    """What a checkpoint of adapters says of them; where they are merged changes nothing in them."""
    return {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets)}


def check_described(lora: LoraSettings, about: Mapping[str, Any], folder: Path) -> None:
    """Refuses saved adapters that would count otherwise than when they were trained.

    Checkpoints of versions that did not write it down are taken as they are.
    """
    saved: dict[str, Any] = about.get("lora") or {}
    given = described(lora)
    for key in given if saved else ():
        if saved[key] != given[key]:
            raise ValueError(
                f"model.lora.{key}={getattr(lora, key)!r}: the adapters in {folder} were trained "
                f"with {saved[key]!r}; set it back, or start anew"
            )


class Checkpoints:
    """Numbered checkpoints in a folder; the newest `keep` stay. A save that fails loses nothing:
    the former checkpoint stays loadable, and the error is raised. Several processes open, save and
    restore together, and what one number of them saved, another may restore.

    `lora` is needed to save or restore a state with adapters."""

    def __init__(self, folder: Path, *, keep: int, lora: LoraSettings | None = None) -> None:
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

    def save(self, step: int, state: TrainState, about: Mapping[str, Any]) -> None:
        """Saves and waits. `about` is small JSON: data position, buffer identity, counters."""
        if step in self._manager.all_steps():
            return
        args, about = self._ocp.args, dict(about)
        if ADAPTERS in state.params:
            assert self._lora is not None, "adapters are saved with how they count"
            about |= {"base": base_identity(state.params), "lora": described(self._lora)}
        self._manager.save(
            step,
            args=args.Composite(state=args.StandardSave(_plain(state)), about=args.JsonSave(about)),
        )
        self._manager.wait_until_finished()

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The newest checkpoint (or that of `step`), shaped and placed like `state`.

        Raises:
            ValueError: its adapters were trained on another base than that of `state`, or with
            another rank, alpha or targets.
        """
        step = self.latest() if step is None else step
        if ADAPTERS in state.params:  # before arrays of other shapes are read
            assert self._lora is not None, "adapters are restored by how they count"
            check_described(self._lora, self.about(step), self._manager.directory)
        args = self._ocp.args
        found = self._manager.restore(
            step,
            args=args.Composite(
                state=args.StandardRestore(jax.tree.map(_abstract, _plain(state))),
                about=args.JsonRestore(),
            ),
        )
        about, saved = dict(found["about"]), found["state"]
        about.pop("lora", None)
        if about.pop("base", None) != (
            base_identity(state.params) if ADAPTERS in state.params else None
        ):
            raise ValueError(
                f"{self._manager.directory}: its adapters were trained on other weights than those "
                "of model.folder or the cold start now; give those back, or start anew"
            )
        params = with_trained(state.params, saved["params"])
        return TrainState(params, saved["opt_state"], saved["step"]), about

    def about(self, step: int | None = None) -> dict[str, Any]:
        """What the newest checkpoint (or that of `step`) says of itself, its base included."""
        args, step = self._ocp.args, self.latest() if step is None else step
        found = self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))
        return dict(found["about"])

    def restore_params(self, step: int | None = None) -> Params:
        """The newest parameters (or those of `step`) alone, as numpy arrays of any shape.

        On whichever devices, and by however many processes: each reads all of them.
        """
        ocp, step = self._ocp, self.latest() if step is None else step
        path = self._manager.directory / str(step) / "state"
        handler = ocp.PyTreeCheckpointHandler()
        saved = {"params": handler.metadata(path).tree["params"]}
        how = ocp.args.PyTreeRestore(
            item=saved,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved),
            partial_restore=True,
        )
        return handler.restore(path, args=how)["params"]

    def close(self) -> None:
        self._manager.close()


def _plain(state: TrainState) -> dict[str, Any]:
    return {"params": trained(state.params), "opt_state": state.opt_state, "step": state.step}


def _abstract(x: Any) -> Any:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=getattr(x, "sharding", None))
