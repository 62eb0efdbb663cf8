"""Folders of a run's parts, from its settings and its workdir."""

from __future__ import annotations

from pathlib import Path

from rapo_jax.config import Settings

COLD_START = "coldstart"
"""Of a workdir: its cold start, unless `sft.folder` names another."""


def cold_start_folder(settings: Settings, workdir: Path) -> Path:
    return Path(settings.sft.folder or workdir / COLD_START)


def buffer_folder(settings: Settings, workdir: Path) -> Path:
    return Path(settings.buffer.folder or workdir / "buffer")


def tokenizer_folder(settings: Settings, workdir: Path) -> Path:
    """`tokenizer.folder`, else `model.folder`, else COLDSTART/tokenizer, which the run creates."""
    given = settings.tokenizer.folder or settings.model.folder
    return Path(given) if given else cold_start_folder(settings, workdir) / "tokenizer"
