"""Estimates disk, memory and time of an index from a measured sample of its corpus."""

from __future__ import annotations

import gzip
import itertools
import math
import shutil
import time
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from rapo_jax.io.jsonl import GZIP_MAGIC, LineReport, read_jsonl
from rapo_jax.search.backends import TREE_MIN, tree_builder, tree_leaves
from rapo_jax.search.batches import Document
from rapo_jax.search.corpus import document_of
from rapo_jax.search.index.build import COPIES
from rapo_jax.search.index.keys import CorpusEncoder, gets_tree

SAMPLE = 2000
"""Passages read, from the beginning."""
EMBEDDED_ROWS = 128
EMBED_S = 10.0
ID_BYTES = 128
"""Most memory that the set of ids takes for one id."""
LEAST_PART = 1 << 16


class IndexEstimate(NamedTuple):
    """Bytes and seconds; `exact` is whether the sample was the whole corpus."""

    passages: int
    exact: bool
    shards: int
    texts_bytes: int
    keys_bytes: int
    trees_bytes: int
    build_bytes: int
    """Memory to build it, beside the interpreter's and the encoder's."""
    serve_bytes: int
    texts_s: float
    embed_s: float
    trees_s: float

    @property
    def disk_bytes(self) -> int:
        return self.texts_bytes + self.keys_bytes + self.trees_bytes

    def lines(self, free_bytes: int) -> list[str]:
        """The estimate as text, with a warning if the disk is too small."""
        roughly = "" if self.exact else "about "
        total = self.texts_s + self.embed_s + self.trees_s
        lines = [
            f"{roughly}{self.passages} passages in {self.shards} shards; estimate from a sample:",
            f"disk {_size(self.disk_bytes)} (texts {_size(self.texts_bytes)}, keys "
            f"{_size(self.keys_bytes)}, trees {_size(self.trees_bytes)}), free are "
            f"{_size(free_bytes)}",
            f"memory {_size(self.build_bytes)} to build, {_size(self.serve_bytes)} to search",
            f"time {_time(total)} (texts {_time(self.texts_s)}, embedding {_time(self.embed_s)}, "
            f"trees {_time(self.trees_s)})",
        ]
        if self.disk_bytes > free_bytes:
            lines.append("WARNING: this disk is too small for it")
        return lines


def estimate(corpus: str, encoder: CorpusEncoder, *, rows: int, kind: str) -> IndexEstimate:
    """Reads, embeds and indexes the first passages; raises ValueError if none can be used."""
    report = LineReport(corpus)
    started = time.perf_counter()
    lines = read_jsonl(
        corpus, document_of, malformed="skip", key="search_index.malformed", report=report
    )
    sample = list(itertools.islice(lines, SAMPLE))
    read_s = (time.perf_counter() - started) / len(sample)
    share = _share_of_file(corpus, report.lines) if len(sample) == SAMPLE else 1.0
    passages = len(sample) if share >= 1 else round(len(sample) / share)
    width, shard = int(encoder.metadata["width"]), min(rows, passages)
    tree = gets_tree(kind, shard)
    embed_s, key_ME = _embedding(sample, encoder)
    text_bytes = np.mean([len(d.id.encode()) + len(d.contents.encode()) for d in sample])
    code_bytes = width // 2 + 4 if tree else 0
    return IndexEstimate(
        passages=passages,
        exact=share >= 1,
        shards=math.ceil(passages / rows),
        texts_bytes=round(passages * (text_bytes + 16)),
        keys_bytes=passages * 2 * width,
        trees_bytes=passages * code_bytes,
        build_bytes=passages * ID_BYTES + (shard * 4 * width * COPIES if tree else 0),
        serve_bytes=passages * code_bytes,
        texts_s=read_s * passages,
        embed_s=embed_s * passages,
        trees_s=_tree_s(key_ME) * passages if tree else 0.0,
    )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _share_of_file(corpus: str, lines: int) -> float:
    """The share of a file's bytes that its first `lines` lines take."""
    with open(corpus, "rb") as raw:
        size = raw.seek(0, 2)
        raw.seek(0)
        zipped = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        text = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
        read = 0
        while read < lines and (piece := text.readline(LEAST_PART)):
            read += piece.endswith(b"\n") and bool(piece.strip())
        at_end = not text.read(1)
        return 1.0 if at_end else min(raw.tell() / size, 1.0)


def _embedding(sample: list[Document], encoder: CorpusEncoder) -> tuple[float, np.ndarray]:
    """(seconds a passage, key_ME). The first batch is embedded twice: at first it compiles."""
    texts = [document.contents for document in sample]
    encode = encoder.fit(texts).encode
    encode(texts[:EMBEDDED_ROWS])
    keys: list[np.ndarray] = []
    count, started = 0, time.perf_counter()
    while count < len(texts) and (not count or time.perf_counter() - started < EMBED_S):
        keys.append(np.asarray(encode(texts[count : count + EMBEDDED_ROWS]), np.float32))
        count += len(keys[-1])
    return (time.perf_counter() - started) / count, np.concatenate(keys)


def _tree_s(key_ME: np.ndarray) -> float:
    """Seconds for one passage in a tree of the sample, a little more than in a large one."""
    rows = len(key_ME)
    if rows < TREE_MIN:
        return 0.0
    started = time.perf_counter()
    tree_builder(key_ME, searched=tree_leaves(rows), trained_on=rows).build()
    return (time.perf_counter() - started) / rows


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
