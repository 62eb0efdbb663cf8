"""Models by their name on the Hugging Face hub, in the cache of this machine; no network."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_hub_name(folder: str) -> bool:
    """Whether `folder` is no folder and has the form OWNER/NAME, such as Qwen/Qwen2.5-7B."""
    return bool(_NAME.fullmatch(folder)) and not Path(folder).exists()


def cached_folder(folder: str) -> str:
    """The folder of a hub name that is in the cache; else `folder` as it is."""
    if not is_hub_name(folder):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(folder, local_files_only=True)
    except LocalEntryNotFoundError:
        return folder
