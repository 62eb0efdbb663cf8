"""Models by their name on the Hugging Face hub, in the cache of this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from rapo_jax.io.files import read_object

_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_hub_name(folder: str) -> bool:
    """Whether `folder` is no folder and has the form OWNER/NAME, such as Qwen/Qwen2.5-7B."""
    return bool(_NAME.fullmatch(folder)) and not Path(folder).exists()


def cached_folder(folder: str) -> str:
    """The folder of a hub name that is whole in the cache; else `folder` as it is."""
    if not is_hub_name(folder):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(folder, local_files_only=True)
    except LocalEntryNotFoundError:
        return folder
    return folder if _is_cut_off(Path(found)) else found


def _is_cut_off(snapshot: Path) -> bool:
    """Whether a download of weights ended early: the hub calls such a snapshot one, too."""
    index = snapshot / "model.safetensors.index.json"
    if index.is_file():
        shards = set(read_object(index).get("weight_map", {}).values())
        return not all((snapshot / name).exists() for name in shards)
    cut_off = any((snapshot.parents[1] / "blobs").glob("*.incomplete"))
    return cut_off and not (snapshot / "model.safetensors").exists()


def download(models: Iterable[str], *, program: str = "") -> None:
    """Downloads models into the cache with `hf`, unless HF_HUB_OFFLINE forbids a network.

    One that cannot be downloaded stays missing; the output of `hf` says why.
    """
    from huggingface_hub import constants

    beside = shutil.which("hf", path=str(Path(sys.executable).parent))
    program = program or beside or shutil.which("hf") or ""
    if not program or constants.HF_HUB_OFFLINE:
        return
    for name in models:
        print(f"[hub] {name} is not in the cache: hf download {name}", flush=True)
        subprocess.run([program, "download", name], stdout=subprocess.DEVNULL, check=False)
