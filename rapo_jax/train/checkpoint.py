"""Checkpoints: parameters, optimizer, step, and everything a run needs to go on, through Orbax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rapo_jax.types import Params, TrainState


class Checkpoints:
    """Numbered checkpoints in a folder; the newest `keep` stay. A save that fails loses nothing:
    the former checkpoint stays loadable, and the error is raised. Several processes open, save and
    restore together, and what one number of them saved, another may restore."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
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
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(_plain(state)), about=args.JsonSave(dict(about))
            ),
        )
        self._manager.wait_until_finished()

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The newest checkpoint (or that of `step`), shaped and placed like `state`."""
        step = self.latest() if step is None else step
        args = self._ocp.args
        found = self._manager.restore(
            step,
            args=args.Composite(
                state=args.StandardRestore(jax.tree.map(_abstract, _plain(state))),
                about=args.JsonRestore(),
            ),
        )
        params, opt_state = found["state"]["params"], found["state"]["opt_state"]
        return TrainState(params, opt_state, found["state"]["step"]), found["about"]

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
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step}


def _abstract(x: Any) -> Any:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=getattr(x, "sharding", None))
