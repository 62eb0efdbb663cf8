"""The export stage: writes the newest weights as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from rapo_jax.config import Settings
from rapo_jax.io.files import Json
from rapo_jax.model.hf import save_weights
from rapo_jax.model.hf_config import HfConfig, config_of
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.lora import ADAPTERS, merged
from rapo_jax.model.sharding import make_mesh
from rapo_jax.text.special_tokens import GENERATION_FILE, stop_ids
from rapo_jax.train.folders import tokenizer_folder
from rapo_jax.train.metrics import clock
from rapo_jax.train.policy import Weights, newest_weights

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


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
    dtype = stored_dtype(settings) if s.dtype == "same" else s.dtype
    config = _config(settings, weights, dtype)
    params = weights.load(make_mesh(devices, **dataclasses.asdict(settings.mesh)), dtype="float32")
    if ADAPTERS in params:
        params = jax.jit(partial(merged, weights.model))(params)
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_weights(draft, weights.model, params, dtype=dtype, limit=round(s.shard_gb * 1e9))
    stops = _copy_tokenizer(settings, workdir, draft, known=weights.model.vocab)
    if stops and "eos_token_id" in config:  # read where there is no generation config
        config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if folder.exists():
        folder.rmdir()
    draft.replace(folder)
    spent = clock(time.perf_counter() - started)
    print(f"[export] weights of {weights.origin} as {dtype} in {spent} -> {folder}", flush=True)
    if not settings.model.folder and config["model_type"] == "qwen2":
        print(
            "[export] transformers' AutoTokenizer takes the tokenizer of any qwen2 folder for "
            "Qwen's own; load this one with PreTrainedTokenizerFast.from_pretrained",
            flush=True,
        )


def stored_dtype(settings: Settings) -> str:
    """The dtype of `model.folder`, by its config.json or else its files; float32 without one."""
    folder = settings.model.folder
    if not folder:
        return "float32"
    first = next(iter(Tensors(folder).headers.values()))
    return HfConfig(folder).stored_dtype or DTYPES[first.dtype]


def _config(settings: Settings, weights: Weights, dtype: str) -> dict[str, Json]:
    if settings.model.folder:
        config = HfConfig(settings.model.folder).values
    else:
        config = config_of(weights.model, max_positions=settings.rollout.max_tokens)
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    return config | dict.fromkeys(keys, dtype)


def _copy_tokenizer(settings: Settings, workdir: Path, target: Path, *, known: int) -> list[Json]:
    """Copies the run's tokenizer and generation config, with all ids at which the run stops.

    Returns these; there are none where the folder has no tokenizer.
    """
    source = tokenizer_folder(settings, workdir)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    folders = (Path(folder) for folder in (settings.model.folder, source) if folder)
    configs = [folder / GENERATION_FILE for folder in folders]
    given = next((path for path in configs if path.is_file()), None)
    config: dict[str, Json] = json.loads(given.read_text()) if given else {}
    stops: list[Json] = []
    if (source / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(source))
        ids = stop_ids(source, tokenizer, known=max(known, len(tokenizer)))
        old = config.get("eos_token_id")
        olds: list[Json] = old if isinstance(old, list) else [] if old is None else [old]
        stops = list(dict.fromkeys([*ids, *olds]))
        pad = tokenizer.pad_token_id
        pads: dict[str, Json] = {"pad_token_id": pad if isinstance(pad, int) else ids[0]}
        config = pads | config | {"eos_token_id": stops}
    if config:
        (target / GENERATION_FILE).write_text(json.dumps(config, indent=2) + "\n")
    return stops
