"""Checkpoints through Orbax: parameters, optimizer, step, and what a run needs to resume.

Where there are adapters, only they are saved. The metadata then holds the identity of their base
and the settings that their effect depends on: rank, alpha and targets.

A digest of every file is saved beside them. A checkpoint whose files differ from it is never read:
the newest whole one takes its place.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from rapo_jax.config import LoraSettings
from rapo_jax.distributed import allgather_json, on_first
from rapo_jax.io.digests import DIGESTS, Digests, damage, digests, files_of
from rapo_jax.io.files import read_json, write_json
from rapo_jax.model.lora import ADAPTERS, identity, trained, with_trained
from rapo_jax.types import Array, Params, TrainState

GB = 1e9
CLEANING_S = 60.0
"""How long the removal of what killed saves left may take."""
METADATA = "about"
"""Name of the metadata on disk, which older checkpoints have too."""
PARTS = (f"{METADATA}/metadata", "state/_METADATA", "state/manifest.ocdbt")
"""Files without which a checkpoint is half a copy of one."""

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
                f"with {saved[key]!r}; set it back, or start a new --workdir"
            )


def more_checkpoints(keep: int | None, *, held: int, writes: int) -> int:
    """How many more checkpoints a folder will hold at a time than the `held` ones.

    Of `writes` further ones, all are kept (None) or the newest `keep`, beside the one that is being
    written.
    """
    return writes if keep is None else min(writes, max(keep + 1 - held, 1))


class Checkpoints:
    """Numbered checkpoints in a folder; keeps the newest `keep` (None: all).

    A save that fails loses nothing: the former checkpoint can still be loaded, and the error is
    raised. Several processes open, save, look for the latest and restore together; another number
    of processes may restore what they saved. `lora` is needed for a state with adapters.
    """

    def __init__(
        self, folder: Path, *, keep: int | None = None, lora: LoraSettings | None = None
    ) -> None:
        import orbax.checkpoint as ocp

        self._ocp, self._lora, self._keep = ocp, lora, keep
        # Orbax takes relative paths and fails late, so the path is made absolute here.
        self._folder = Path(folder).absolute()
        if "[" in str(self._folder):  # Orbax takes it for a pattern, and loses the arrays
            raise ValueError(
                f"{self._folder}: the path of a checkpoint must not hold a '['; choose another "
                "folder (--workdir, sft.folder)"
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=keep is not None,  # of killed saves, where this one saves
            # In the background, a process whose disk is full would wait for the others, and they
            # for it, for 20 minutes.
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        if keep is not None:
            on_first(self._wait_for_cleaning)

    def _wait_for_cleaning(self) -> None:
        """Until killed saves are removed, which Orbax does in a thread: the room is theirs."""
        deadline = time.monotonic() + CLEANING_S
        while any(self._folder.glob("*.orbax-checkpoint-tmp*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        if left := sorted(self._folder.glob("*.orbax-checkpoint-tmp*")):
            print(f"[checkpoint] what a killed save left is still there: {left[0]}", flush=True)

    def steps(self) -> list[int]:
        """Steps of all checkpoints that are kept, as the first process sees the folder.

        All processes call it together: a file system may show them different folders.
        """
        return on_first(lambda: sorted(self._manager.all_steps()))

    def latest(self) -> int | None:
        """Step of the newest checkpoint with undamaged files, None if nothing was saved.

        Raises:
            ValueError: all are damaged.
        """
        steps = self.steps()[::-1]
        for step in steps:
            lines = _damage(self._folder / str(step))
            if not lines:
                return step
            more = f" (and {len(lines) - 1} more files)" if len(lines) > 1 else ""
            print(
                f"[checkpoint] {self._folder / str(step)} is damaged: {lines[0]}{more}; "
                "the one before it is taken",
                flush=True,
            )
        if steps:
            raise ValueError(
                f"{self._folder}: every checkpoint there is damaged, the oldest is that "
                f"of step {steps[-1]}; restore one from a backup, or start a new --workdir"
            )
        return None

    def check_room(self, state: TrainState, *, writes: int) -> None:
        """Refuses a disk without room for `writes` further checkpoints of `state`.

        Raises:
            ValueError: says how much is missing.
        """
        size = sum(x.nbytes for x in jax.tree.leaves(_plain(state)))
        free = on_first(lambda: shutil.disk_usage(self._folder).free)
        more = more_checkpoints(self._keep, held=len(self.steps()), writes=writes)
        if free < more * size:
            raise ValueError(
                f"checkpoint.keep={self._keep}: {self._folder} has {free / GB:.1f} GB left and "
                f"needs room for {more} more checkpoints of {size / GB:.1f} GB; lower it, or "
                "choose a --workdir on a larger disk"
            )

    def save(self, step: int, state: TrainState, metadata: Mapping[str, object]) -> None:
        """Saves and waits, unless `step` is saved already. `metadata` is small JSON."""
        if step in self.steps():
            return
        args, metadata = self._ocp.args, dict(metadata)
        if ADAPTERS in state.params:
            assert self._lora is not None, "adapters are saved with their settings"
            metadata |= {"base": base_identity(state.params), "lora": _lora_metadata(self._lora)}
        items = {"state": args.StandardSave(_plain(state)), METADATA: args.JsonSave(metadata)}
        self._manager.save(step, args=args.Composite(**items))
        folder = self._folder / str(step)
        names = on_first(lambda: files_of(folder))
        found = _shared_digests(folder, names)
        on_first(lambda: write_json(folder / DIGESTS, found))

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, Metadata]:
        """State and metadata of the latest checkpoint (or that of `step`), placed like `state`.

        Damaged ones that are newer are renamed, so that their steps can be saved again.

        Raises:
            ValueError: its adapters were trained on another base than that of `state`, or with
            another rank, alpha or targets.
        """
        if step is None:
            step, steps = self.latest(), self.steps()
            newer = [each for each in steps if step is not None and each > step]
            on_first(lambda: self._set_aside(newer))
            self._manager.reload()
        if ADAPTERS in state.params:  # before arrays of other shapes are read
            assert self._lora is not None, "adapters are restored with their settings"
            check_lora(self._lora, self.metadata(step), self._folder)
        args = self._ocp.args
        shapes = jax.tree.map(_abstract, _plain(state))
        items = {"state": args.StandardRestore(shapes), METADATA: args.JsonRestore()}
        restored = self._manager.restore(step, args=args.Composite(**items))
        metadata, saved = dict(restored[METADATA]), restored["state"]
        metadata.pop("lora", None)
        base = base_identity(state.params) if ADAPTERS in state.params else None
        if metadata.pop("base", None) != base:
            raise ValueError(
                f"{self._folder}: its adapters were trained on other weights than those "
                "of model.folder or the cold start now; use those again, or start a new "
                "--workdir"
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
        path = self._folder / str(step) / "state"
        handler = ocp.PyTreeCheckpointHandler()
        saved = {"params": handler.metadata(path).tree["params"]}
        restore = ocp.args.PyTreeRestore(
            item=saved,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved),
            partial_restore=True,
        )
        return handler.restore(path, args=restore)["params"]

    def _set_aside(self, steps: Sequence[int]) -> None:
        for step in steps:
            folder = self._folder / str(step)
            folder.rename(_free(folder.with_name(f"damaged-{step}")))

    def close(self) -> None:
        self._manager.close()


def _free(path: Path) -> Path:
    """The path; where there is something, the first of PATH-2, PATH-3, ... where there is not."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())


def _shared_digests(folder: Path, names: list[str]) -> Digests:
    """Digests of the files, computed by all processes, each of its share."""
    local = digests(folder, names[jax.process_index() :: jax.process_count()])
    return {name: digest for part in allgather_json(local) for name, digest in part.items()}


def _damage(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint; all processes call it together."""
    return _checked(folder, tuple(map(tuple, on_first(lambda: _sizes_and_times(folder)))))


def _sizes_and_times(folder: Path) -> list[tuple[str, int, int]]:
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found.items()]


@functools.cache  # weights are looked for, named and read in turn, and digests take their time
def _checked(folder: Path, files: tuple[tuple[str, int, int], ...]) -> list[str]:
    """`_damage` of a checkpoint with these files."""
    try:
        recorded = on_first(lambda: read_json(folder / DIGESTS))
    except ValueError as error:
        return [str(error)]
    if recorded is None:  # killed before they were written, or of a version that had none
        if missing := on_first(lambda: [x for x in PARTS if not (folder / x).is_file()]):
            return [f"{name} is missing" for name in missing]
        print(f"[checkpoint] {folder} has no {DIGESTS}: its files are not checked", flush=True)
        return []
    return damage(recorded, _shared_digests(folder, sorted(recorded)))


def _plain(state: TrainState) -> dict[str, Params]:
    return {"params": trained(state.params), "opt_state": state.opt_state, "step": state.step}


def _abstract(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=getattr(x, "sharding", None))
