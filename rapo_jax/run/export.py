"""Writes weights as a Hugging Face folder: config.json, safetensors, tokenizer, stop tokens."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import jax

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.distributed import is_first
from rapo_jax.io.files import Json
from rapo_jax.model.hf import save_weights
from rapo_jax.model.hf_config import HfConfig, config_of
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.lora import ADAPTERS, merged
from rapo_jax.run.folders import tokenizer_folder
from rapo_jax.text.special_tokens import GENERATION_FILE, stop_ids
from rapo_jax.types import Params

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
CHAT_TEMPLATES = "additional_chat_templates"
"""Folder of named chat templates, such as `tool_use`."""
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def write_folder(
    settings: Settings, workdir: Path, folder: Path, model: ModelSettings, params: Params
) -> dict[str, Json]:
    """Writes `params` as a Hugging Face folder by `config.export`; returns its config.json.

    Adapters are merged into the weights. All processes call this together, and the first writes.
    The folder appears once it is complete; an empty one is replaced.

    Raises:
        ValueError: a parameter is not finite.
    """
    s = settings.export
    dtype = stored_dtype(settings) if s.dtype == "same" else s.dtype
    config = _config(settings, model, dtype)
    if ADAPTERS in params:
        params = jax.jit(partial(merged, model))(params)
    draft = folder.with_name(folder.name + ".tmp") if is_first() else None
    if draft:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    save_weights(draft, model, params, dtype=dtype, limit=round(s.shard_gb * 1e9))
    if not draft:
        return config
    vocab = params["embed_VD"].shape[0]
    stops = _copy_tokenizer(settings, workdir, draft, known=vocab)
    if stops and "eos_token_id" in config:  # read where there is no generation config
        config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if folder.exists():
        folder.rmdir()
    draft.replace(folder)
    return config


def stored_dtype(settings: Settings) -> str:
    """The dtype of `model.folder`, by its config.json or else its files; float32 without one."""
    folder = settings.model.folder
    if not folder:
        return "float32"
    first = next(iter(Tensors(folder).headers.values()))
    return HfConfig(folder).stored_dtype or DTYPES[first.dtype]


def _config(settings: Settings, model: ModelSettings, dtype: str) -> dict[str, Json]:
    if settings.model.folder:
        config = HfConfig(settings.model.folder).values
    else:
        config = config_of(model, max_positions=settings.rollout.max_tokens)
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
    if (source / CHAT_TEMPLATES).is_dir():
        shutil.copytree(source / CHAT_TEMPLATES, target / CHAT_TEMPLATES)
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
