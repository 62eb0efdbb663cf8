"""The score stage: log-probabilities and entropies of given tokens under the newest weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, ScoreSettings, Settings
from rapo_jax.io.jsonl import parse_line
from rapo_jax.model.attention import choose
from rapo_jax.model.scoring import score
from rapo_jax.model.sharding import make_mesh, on_mesh, place, row_shards, rows
from rapo_jax.run.metrics import Progress, clock
from rapo_jax.run.policy import newest_weights
from rapo_jax.types import Params

NARROWEST = 16
"""Least token positions of a row."""


@partial(jax.jit, static_argnums=(0, 1))
def _score(model: ModelSettings, mesh: Mesh, params: Params, token_BT: jax.Array):
    with on_mesh(mesh):
        return score(model, params, token_BT)


def score_file(
    settings: Settings, workdir: Path, *, devices: Sequence[jax.Device] | None = None
) -> None:
    """Scores every row of `score.input` into `score.output`, in the same order.

    A row `{"tokens": [...]}` gives `{"logp": [...], "entropy": [...]}` in nats, one number of each
    for every token after the first; the log-softmax is float32 whatever `model.dtype` is.

    Raises:
        ValueError: a key is not set, a line is not such a row, or there are no weights (nothing
        has been compiled then); or a result is not finite.
    """
    started = time.perf_counter()
    source, target = _paths(settings.score)
    weights = newest_weights(settings, workdir)
    row_tokens = read_rows(source, vocab=weights.model.vocab)
    _begin(target)
    mesh = make_mesh(devices, **dataclasses.asdict(settings.mesh))
    attention = choose(weights.model, platform=mesh.devices.flat[0].platform)
    if attention.note:
        print(f"[score] {attention.note}", flush=True)
    print(f"[score] {len(row_tokens)} rows under the weights of {weights.origin}", flush=True)
    params = weights.load(mesh, dtype=weights.model.dtype)
    lengths = [len(tokens) for tokens in row_tokens]
    scores = [np.empty((2, 0), np.float32)] * len(row_tokens)  # a row of one token has none
    done = lengths.count(1)
    progress = Progress("score", total=len(row_tokens), done=done)
    # On GPUs and TPUs float32 products are not float32 unless asked for.
    precise = "highest" if weights.model.dtype == "float32" else "default"
    with jax.default_matmul_precision(precise):
        for batch in batches(
            lengths, batch_tokens=settings.score.batch_tokens, multiple=row_shards(mesh)
        ):
            token_BT = np.zeros((batch.rows, batch.width), np.int32)
            for b, row in enumerate(batch.members):
                token_BT[b, : lengths[row]] = row_tokens[row]
            scored = _score(weights.model, mesh, params, place(token_BT, rows(mesh)))
            both_2BT = np.stack(jax.device_get(scored))
            for b, row in enumerate(batch.members):
                scores[row] = both_2BT[:, b, 1 : lengths[row]]
                if not np.isfinite(scores[row]).all():
                    raise ValueError(
                        f"model.dtype={weights.model.dtype!r}: the scores of line {row + 1} of "
                        f"{source} are not finite; these weights overflow in it"
                    )
            done += len(batch.members)
            progress.show(done)
    _write(target, scores)
    spent = clock(time.perf_counter() - started)
    print(f"[score] {sum(lengths)} tokens in {spent} -> {target}", flush=True)


def _paths(s: ScoreSettings) -> tuple[Path, Path]:
    source, target = Path(s.input), Path(s.output)
    if not source.is_file():
        raise ValueError(
            f"score.input={s.input!r}: no such file; it holds JSON lines " + '{"tokens": [...]}'
        )
    if not s.output or target.is_dir():
        raise ValueError(f"score.output={s.output!r}: name a file to be written")
    if target.resolve() == source.resolve():
        raise ValueError(f"score.output={s.output!r}: it is score.input; name another file")
    return source, target


def _begin(target: Path) -> None:
    """Begins the output before anything is scored, so that a wrong place costs no hours."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _draft(target).touch()
    except OSError as error:
        raise ValueError(
            f"score.output={str(target)!r}: cannot be written ({error.strerror}); name another file"
        ) from None


def read_rows(path: Path, *, vocab: int) -> list[np.ndarray]:
    """Token ids of every line of a file.

    Raises:
        ValueError: there are no lines, or one is not a row of ids below `vocab`; names the line.
    """
    row_tokens = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            tokens = (parse_line(line) or {}).get("tokens")
            if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
                shown = line[:40].decode("utf-8", "replace").rstrip("\n")
                raise ValueError(
                    f"score.input: line {number} of {path} is not a JSON object such as "
                    f'{{"tokens": [1, 2, 3]}}: {shown!r}'
                )
            if not tokens:
                raise ValueError(f"score.input: line {number} of {path} has no tokens")
            for token in (min(tokens), max(tokens)):
                if not 0 <= token < vocab:
                    raise ValueError(
                        f"score.input: line {number} of {path} has token {token}, the model's "
                        f"vocabulary is 0 … {vocab - 1}"
                    )
            row_tokens.append(np.array(tokens, np.int32))
    if not row_tokens:
        raise ValueError(f"score.input={str(path)!r}: the file is empty")
    return row_tokens


class RowBatch(NamedTuple):
    """One forward pass: `rows` rows of `width` positions; the first are `members`."""

    members: list[int]
    rows: int
    width: int


def batches(lengths: Sequence[int], *, batch_tokens: int, multiple: int) -> Iterator[RowBatch]:
    """Rows of more than one token, each once, the longest first and so with others of its length.

    A batch holds about `batch_tokens` positions and a `multiple` of rows; batches of one width are
    of one shape. What does not fit into memory fails at once, because the widest comes first.
    """
    order = sorted((row for row, n in enumerate(lengths) if n > 1), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        width = bucket_width(lengths[order[start]])
        count = min(max(batch_tokens // width, 1), len(order))
        count = -(-count // multiple) * multiple
        yield RowBatch(order[start : start + count], count, width)
        start += count


def bucket_width(length: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, … that holds `length` positions."""
    width = NARROWEST
    while width < length:
        power_of_two = width & (width - 1) == 0
        width = width * 3 // 2 if power_of_two else width * 4 // 3
    return width


def _write(target: Path, scores: Sequence[np.ndarray]) -> None:
    draft = _draft(target)
    with open(draft, "w", encoding="utf-8") as file:
        for logp_X, entropy_X in scores:
            file.write(f'{{"logp": {_numbers(logp_X)}, "entropy": {_numbers(entropy_X)}}}\n')
    draft.replace(target)


def _draft(target: Path) -> Path:
    return target.with_name(target.name + ".tmp")


def _numbers(values: np.ndarray) -> str:
    """A JSON list; nine digits give every float32 back."""
    return "[" + ", ".join(f"{value:.9g}" for value in values.tolist()) + "]"
