"""Texts of passages on disk, memory-mapped, and the reader that cuts a corpus into shards."""

from __future__ import annotations

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from rapo_jax.io.files import Json, write_json
from rapo_jax.io.jsonl import LineReport
from rapo_jax.search.batches import Document
from rapo_jax.search.corpus import read_documents
from rapo_jax.search.index.files import TEXTS_DONE, read_keys, shard_folder

SHOWN = 20
"""Maximum number of malformed lines that the manifest lists; all are counted."""


class PassageTexts(Sequence[str]):
    """The contents of the passages of some shards, read from disk at each access.

    Items, iteration and slices give texts; `document` gives a passage with its id.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._offsets = [_offsets(folder) for folder in folders]
        self._bytes = list(map(_bytes, folders, self._offsets))
        sizes = [len(offsets) // 2 for offsets in self._offsets]
        self.starts = np.cumsum([0, *sizes])
        """The number of each shard's first passage, then the number of all passages."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def document(self, place: int) -> Document:
        shard = int(np.searchsorted(self.starts, place, side="right")) - 1
        row = 2 * (place - int(self.starts[shard]))
        start, middle, end = (int(each) for each in self._offsets[shard][row : row + 3])
        data = self._bytes[shard]
        return Document(
            data[start:middle].tobytes().decode("utf-8"), data[middle:end].tobytes().decode("utf-8")
        )

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self.document(each).contents for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.document(place % len(self)).contents


def _offsets(folder: Path) -> np.ndarray:
    try:
        return np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{folder}: its texts cannot be read ({error}); build the index again"
        ) from None


def _bytes(folder: Path, offsets: np.ndarray) -> np.ndarray:
    path = folder / "texts.bin"
    size = path.stat().st_size if path.is_file() else -1
    if size != offsets[-1]:
        raise ValueError(
            f"{path}: {size} bytes, not the {offsets[-1]} it was built with; build the index again"
        )
    return np.memmap(path, np.uint8, "r", shape=(size,))


def read_texts(
    corpus: str, folder: Path, *, rows: int, malformed: str, log: Callable[[str], None]
) -> dict[str, Json]:
    """Cuts a corpus into shards of `rows` passages; returns counts and a digest.

    Shards that exist are kept: their lines are read again and compared, so that duplicates and
    malformed lines are counted as if there had been no interruption.

    Raises:
        ValueError: the corpus cannot be read or has changed, see `read_jsonl`.
    """
    done = folder / TEXTS_DONE
    if done.is_file():
        return read_keys(done, "shards", "summary")
    report, digest = LineReport(corpus), hashlib.sha256()
    lines = read_documents(corpus, malformed=malformed, key="search_index.malformed", report=report)
    number, size = 0, rows
    while size == rows:
        size, shard_digest = _write_shard(lines, shard_folder(folder, number), rows)
        digest.update(shard_digest)
        if size:
            number += 1
            log(f"texts: {report.records} passages of {report.lines} lines in {number} shards")
    counts = {
        "passages": report.records,
        "shards": number,
        "lines": report.lines,
        "malformed": report.malformed,
        "malformed_lines": [list(each) for each in report.malformed_lines[:SHOWN]],
        "summary": report.summary(),
        "sha256": digest.hexdigest(),
    }
    write_json(done, counts)
    return counts


def _write_shard(lines: Iterator[Document], folder: Path, rows: int) -> tuple[int, bytes]:
    """Writes the next `rows` passages, or compares them with a shard's; (number, digest)."""
    offsets, kept = array("q", [0]), folder / TEXTS_DONE
    draft = folder.with_name(folder.name + ".tmp")
    if not kept.is_file():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    path = Path(os.devnull) if kept.is_file() else draft / "texts.bin"
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for document in lines:
            for part in (document.id.encode("utf-8"), document.contents.encode("utf-8")):
                file.write(part)
                offsets.append(offsets[-1] + len(part))
                digest.update(len(part).to_bytes(8, "little") + part)
            if len(offsets) > 2 * rows:
                break
    size = len(offsets) // 2
    counts = {"passages": size, "sha256": digest.hexdigest()}
    if kept.is_file():
        if read_keys(kept) != counts:
            raise ValueError(
                f"{folder}: holds other passages than the corpus now; remove the index, or name "
                "another search_index.folder"
            )
    elif size:
        np.save(draft / "offsets.npy", np.frombuffer(offsets, np.int64))
        write_json(draft / TEXTS_DONE, counts)
        draft.replace(folder)
    else:
        shutil.rmtree(draft)
    return size, digest.digest()
