"""The export stage: writes the newest weights as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from rapo_jax.config import Settings
from rapo_jax.model.sharding import make_mesh
from rapo_jax.run.export import write_folder
from rapo_jax.run.metrics import clock
from rapo_jax.run.policy import newest_weights


def export_weights(
    settings: Settings, workdir: Path, *, devices: Sequence[jax.Device] | None = None
) -> None:
    """Writes `export.folder`: config.json, safetensors, tokenizer and generation config.

    The weights are the newest of the workdir, or those of `model.folder` where nothing was trained.
    Adapters are merged into them. The folder appears once it is complete.

    Raises:
        ValueError: `export.folder` is not set or in use, there are no weights, or they are not
        finite.
    """
    started = time.perf_counter()
    s = settings.export
    folder = Path(s.folder)
    if not s.folder or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ValueError(f"export.folder={s.folder!r}: name a folder that does not exist yet")
    weights = newest_weights(settings, workdir)
    params = weights.load(make_mesh(devices, **dataclasses.asdict(settings.mesh)), dtype="float32")
    config = write_folder(settings, workdir, folder, weights.model, params)
    spent = clock(time.perf_counter() - started)
    print(f"[export] weights of {weights.origin} in {spent} -> {folder}", flush=True)
    if not settings.model.folder and config["model_type"] == "qwen2":
        print(
            "[export] transformers' AutoTokenizer takes the tokenizer of any qwen2 folder for "
            "Qwen's own; load this one with PreTrainedTokenizerFast.from_pretrained",
            flush=True,
        )
