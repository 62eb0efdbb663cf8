"""Stage search_index: a corpus of passages becomes an index on disk for the local search."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rapo_jax.config import SearchIndexSettings, Settings
from rapo_jax.distributed import Stopped
from rapo_jax.io.files import claimed
from rapo_jax.io.signals import stop_requested
from rapo_jax.model.encoder import find_minilm, load_encoder, tokenize_texts
from rapo_jax.run.metrics import clock
from rapo_jax.search.exact import Encode
from rapo_jax.search.index.build import build_index, shard_rows
from rapo_jax.search.index.estimate import estimate, free_bytes
from rapo_jax.search.index.files import MANIFEST
from rapo_jax.search.index.keys import CorpusEncoder, FittedEncoder
from rapo_jax.search.index.minilm import FILES
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.types import Array, Params

TEXT_ORDERS = (1, 2)
"""n-grams of the built-in encoder."""
BATCH_TOKENS = 8192
"""Token positions that the accelerator embeds at a time."""
NARROWEST = 16


def index_corpus(settings: Settings, workdir: Path) -> None:
    """Builds `search_index.folder` from `search_index.corpus`, or what is missing of it.

    Raises:
        ValueError: no corpus is named, it cannot be read, or the folder holds something else.
        FileNotFoundError: the encoder is not there.
        Stopped: a signal asked for it; the next call continues.
    """
    started, s = time.perf_counter(), settings.search_index
    if not s.corpus:
        raise ValueError(
            "search_index.corpus='': name JSON lines of {id, contents} or {id, title, text}, "
            "plain or gzip"
        )
    folder = Path(s.folder or workdir / "search_index")
    maker = {"ngram": _ngram, "minilm": _minilm}[s.encoder](s)
    rows = shard_rows(memory_mb=s.memory_mb, width=maker.metadata["width"])
    finished = (folder / MANIFEST).is_file()  # many may read it at a time, and only read it
    if not finished:
        for line in estimate(s.corpus, maker, rows=rows, kind=s.kind).lines(free_bytes(folder)):
            _say(line)
        folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if finished else claimed(folder, key="search_index.folder"):
        manifest = build_index(s, folder, maker, rows=rows, log=_say_unless_stopped)
    searched = f"; recall@3 {manifest['recall_at_3']:.3f}" if manifest["trees"] else "; exact"
    spent = clock(time.perf_counter() - started)
    _say(f"{manifest['passages']} passages{searched}; {spent} -> {folder}")
    _say(f"search it with --config.tools.search.index={folder}")


def _say_unless_stopped(line: str) -> None:
    """Prints a line between two parts of the build, each kept once finished; stops it if asked."""
    _say(line)
    if stop_requested():
        raise Stopped("finished parts of the index are kept")


def _say(line: str) -> None:
    print(f"[search_index] {line}", flush=True)


def _ngram(settings: SearchIndexSettings) -> CorpusEncoder:
    """The n-gram encoder, on the host, fitted to the corpus."""

    def fit(texts: Sequence[str]) -> FittedEncoder:
        encoder = NgramEncoder.fit(texts, width=settings.width, orders=TEXT_ORDERS)
        return FittedEncoder(encoder, encoder.save)

    return CorpusEncoder({"name": "ngram", "width": settings.width}, fit, NgramEncoder.load)


def _minilm(settings: SearchIndexSettings) -> CorpusEncoder:
    """The MiniLM encoder, on the accelerator."""
    folder = Path(settings.encoder_folder or find_minilm())
    module, params, tokenizer = load_encoder(folder)
    tokens = min(settings.encoder_tokens, module.max_tokens)
    encode = by_length(
        module.apply, params, partial(tokenize_texts, tokenizer, width=tokens), tokens=tokens
    )
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    identity = {"name": "minilm", "width": module.width, "tokens": tokens, "sha256": digest}

    def save(target: Path) -> None:
        for name in FILES:
            shutil.copyfile(folder / name, target / name)

    return CorpusEncoder(identity, lambda texts: FittedEncoder(encode, save), lambda saved: encode)


def by_length(
    embed: Callable[[Params, jax.Array, jax.Array], Array],
    params: Params,
    tokenize: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
    *,
    tokens: int,
) -> Encode:
    """Texts to keys on all devices of this process, texts of like length together.

    Rows are as wide as the next power of two, so that there are few shapes to compile.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("rows",))
    rows_apart = NamedSharding(mesh, PartitionSpec("rows"))
    program = jax.jit(embed)
    weights = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    def encode(texts: Sequence[str]) -> np.ndarray:
        token_BX, length_B = tokenize(texts)
        keys: list[np.ndarray] = []
        order_B, start = np.argsort(length_B, kind="stable"), 0
        while start < len(order_B):
            longest = max(int(length_B[order_B[start]]), NARROWEST)
            width = min(1 << (longest - 1).bit_length(), tokens)
            rows = -(-max(1, BATCH_TOKENS // width) // mesh.size) * mesh.size
            some = order_B[start : start + rows]
            some = some[length_B[some] <= width]
            part_BX = np.zeros((rows, width), np.int32)
            part_BX[: len(some)] = token_BX[some, :width]
            part_length_B = np.zeros(rows, np.int32)
            part_length_B[: len(some)] = length_B[some]
            batch = jax.device_put((part_BX, part_length_B), rows_apart)
            keys.append(np.asarray(program(weights, *batch))[: len(some)])
            start += len(some)
        key_BE = np.concatenate(keys)
        unsorted_BE = np.empty_like(key_BE)
        unsorted_BE[order_B] = key_BE
        return unsorted_BE

    return encode
