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
from rapo_jax.text.tokens import load_tokens
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
GENERATION_FILE = "generation_config.json"
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
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _copy_tokenizer(settings, workdir, draft)
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


def _copy_tokenizer(settings: Settings, workdir: Path, target: Path) -> None:
    """Copies the run's tokenizer, and writes its stop ids where no generation config names them."""
    source = tokenizer_folder(settings, workdir)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for folder in filter(None, (settings.model.folder, str(source))):
        if (Path(folder) / GENERATION_FILE).is_file():
            shutil.copyfile(Path(folder) / GENERATION_FILE, target / GENERATION_FILE)
            return
    if not settings.model.folder and (source / "tokenizer.json").is_file():
        tokens = load_tokens(source)
        ids = {"eos_token_id": list(tokens.eos_ids), "pad_token_id": tokens.pad_id}
        (target / GENERATION_FILE).write_text(json.dumps(ids, indent=2) + "\n")
