"""Reads and writes the safetensors files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rapo_jax.io.files import read_object

if TYPE_CHECKING:
    from safetensors import safe_open

Index = tuple[slice, ...]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/"
"""Begins what a clone without Git LFS has in place of a large file."""
FLOATS = ("F32", "BF16", "F16")


class Header(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """Its name in safetensors, such as BF16."""


class Tensors:
    """The tensors of a folder by name: headers are read at once, values by `read`.

    Raises:
        ValueError: a file is missing or broken, or two files hold one tensor.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.headers: dict[str, Header] = {}
        for path in _files(self.folder):
            with _open(path) as file:
                for name in file.keys():
                    if name in self.headers:
                        other = self.headers[name].file
                        raise ValueError(f"{path}: tensor {name} is in {other} too")
                    part = file.get_slice(name)
                    self.headers[name] = Header(path, tuple(part.get_shape()), part.get_dtype())

    def read(self, name: str, index: Index) -> np.ndarray:
        """Part of a tensor, in its stored dtype.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        # The file is opened for each read: pages of an open file count as memory of this process.
        with _open(self.headers[name].file) as file:
            part = file.get_slice(name)[index]
        if not np.isfinite(part).all():
            raise ValueError(f"{self.folder}: tensor {name} holds NaN or infinite values")
        return part


def _files(folder: Path) -> list[Path]:
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(
            f"model.folder={str(folder)!r}: there is neither {SINGLE_FILE} nor {INDEX_FILE} in it; "
            "weights in another format must be converted to safetensors"
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(x, str) for x in weight_map.values()):
        raise ValueError(f"{index}: not an index of safetensors files: no weight_map of names")
    names = sorted(set(weight_map.values()))
    there = {path.name for path in folder.iterdir() if path.is_file()}
    for name in names:
        if Path(name).name != name or name == "..":
            raise ValueError(f"{index}: weight_map names {name!r}, a file outside its folder")
        if name not in there:
            raise ValueError(f"{folder / name}: missing, but {INDEX_FILE} names it")
    return [folder / name for name in names]


def _open(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                remedy = "fetch the file itself: git lfs pull, or hf download"
                raise ValueError(f"{path}: only a pointer of Git LFS; {remedy}") from None
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], *, sizes: Mapping[str, int], limit: int
) -> None:
    """Writes tensors into one file, or into several of at most `limit` bytes with an index.

    `tensors` come in the order of `sizes` (bytes). A file has at least one tensor, whatever its
    size. The host holds the tensors of one file at a time.
    """
    from safetensors.numpy import save_file

    groups: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    weight_map: dict[str, str] = {}
    remaining = iter(tensors)
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        file = file if len(groups) > 1 else SINGLE_FILE
        # transformers reads only files with this `format`.
        save_file(dict(next(remaining) for _ in group), folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
