"""The buffer stage: off-policy trajectories, filtered, split, embedded, indexed and saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rapo_jax.config import RetrievalSettings
from rapo_jax.host.jsonl import LineReport, read_jsonl
from rapo_jax.host.memory.buffer import StepTraceBuffer, Trace, best_of, make_items
from rapo_jax.host.memory.ngram import NgramEncoder
from rapo_jax.host.memory.retriever import Retriever
from rapo_jax.host.memory.sources import Imported
from rapo_jax.host.memory.traces import group_by_question
from rapo_jax.host.tasks import check_metric
from rapo_jax.train.buffer_policies import SHOW_EVERY_S
from rapo_jax.train.buffer_sources import import_files, sample_agents
from rapo_jax.train.distributed import in_turn, on_first
from rapo_jax.train.encoders import DeviceEncoder
from rapo_jax.train.metrics import Progress
from rapo_jax.train.run import Run

KEY_ORDERS = (1, 2)
"""n-grams of the built-in encoder of keys."""


ENCODE_ROWS = 64
"""Texts that MiniLM embeds at a time when a buffer is built: one shape, one compilation."""

ENCODE_TEXTS = 128 * ENCODE_ROWS
"""Keys between two lines of progress."""


def text_encoder(encoder: DeviceEncoder) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts to keys outside a rollout, for an encoder that runs on the device."""
    tokenize = encoder.tokenize
    assert tokenize is not None
    program = jax.jit(encoder.embed)

    def encode(texts: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), ENCODE_ROWS):
            some = list(texts[start : start + ENCODE_ROWS])
            padded = some + [""] * (ENCODE_ROWS - len(some))
            found.append(np.asarray(program(tokenize(padded)))[: len(some)])
        return np.concatenate(found)

    return encode


def build_buffer(run: Run) -> dict[str, Any]:
    """Builds `BUFFER/traces`, its encoder and `trajectories.jsonl`, or keeps what is there.

    Returns the manifest.
    """
    folder, s = run.buffer, run.settings
    if on_first((folder / "done.json").is_file):
        return load_buffer(run).manifest
    started = time.perf_counter()
    check_metric(s.task.metric)
    imported = import_files(run)
    sample_rest = sample_agents(run)
    return on_first(lambda: _build(run, imported, *sample_rest(), started))


def _build(
    run: Run,
    imported: Imported | None,
    sampled: list[Trace],
    about: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    folder, s = run.buffer, run.settings
    traces = sampled + (imported.traces if imported else [])
    taken: dict[str, Any] = {"unit": s.retrieval.unit, "include_answers": s.buffer.include_answers}
    settings = _splitting(s.retrieval) | taken
    (folder / "encoder").mkdir(parents=True, exist_ok=True)
    if run.encoder.tokenize is None:
        items = make_items(traces, keep=s.buffer.keep, **settings)
        items += imported.step_items(**taken) if imported else []
        fitted = NgramEncoder.fit(
            [item.key for item in items], width=s.retrieval.width, orders=KEY_ORDERS
        )
        fitted.save(folder / "encoder")
    encode, identity = _encoder(run)
    buffer = StepTraceBuffer.build(
        traces,
        encode=_with_progress(encode),
        encoder_identity=identity,
        tokenizer_fingerprint=run.tokens.fingerprint,
        keep=s.buffer.keep,
        count_tokens=lambda text: len(run.tokens.encode_protocol(text)),
        imported=imported,
        about=about,
        **settings,
    )
    buffer.save(folder / "traces")
    kept = best_of(group_by_question(traces), s.buffer.keep)
    with open(folder / "trajectories.jsonl", "w", encoding="utf-8") as file:
        for best in kept.values():
            for trace in best:
                file.write(json.dumps(trace._asdict()) + "\n")
    seconds = time.perf_counter() - started
    done = {"seconds": seconds, "identity": buffer.identity}
    (folder / "done.json").write_text(json.dumps(done) + "\n")
    m = buffer.manifest
    print(
        f"[buffer] {len(buffer.items)} step traces of {m['trajectories_kept']} trajectories kept "
        f"of {m['trajectories_sampled']}; mean reward {m['mean_reward_sampled']:.3f} -> "
        f"{m['mean_reward_kept']:.3f}; {seconds:.0f} s",
        flush=True,
    )
    return m


def _with_progress(
    encode: Callable[[Sequence[str]], np.ndarray],
) -> Callable[[Sequence[str]], np.ndarray]:
    """The same encoder, which says how far it is with many texts."""

    def encode_all(texts: Sequence[str]) -> np.ndarray:
        if len(texts) <= ENCODE_TEXTS:
            return encode(texts)
        progress = Progress("buffer: keys", total=len(texts), done=0, every_s=SHOW_EVERY_S)
        found = []
        for start in range(0, len(texts), ENCODE_TEXTS):
            found.append(encode(texts[start : start + ENCODE_TEXTS]))
            progress.show(start + len(found[-1]))
        return np.concatenate(found)

    return encode_all


def load_buffer(run: Run) -> StepTraceBuffer:
    """The saved buffer; ValueError if it was made for another tokenizer, encoder or splitting."""
    _, identity = _encoder(run)
    buffer = StepTraceBuffer.load(
        run.buffer / "traces",
        encoder_identity=identity,
        tokenizer_fingerprint=run.tokens.fingerprint,
    )
    for name, wanted in _splitting(run.settings.retrieval).items():
        found = buffer.manifest[name]
        if found != wanted:
            raise ValueError(
                f"retrieval.{name}={wanted!r}: the buffer {run.buffer} was built with {found!r}; "
                "set it back, or point buffer.folder to a new folder"
            )
    names = [Path(path).name for path in run.settings.buffer.files]
    held = [file["name"] for file in buffer.manifest.get("files", [])]
    if names and names != held:
        raise ValueError(
            f"buffer.files={names}: the buffer {run.buffer} was built with {held}; "
            "set it back, or point buffer.folder to a new folder"
        )
    return buffer


def attach_buffer(run: Run) -> StepTraceBuffer:
    """Loads the buffer and lets the environment retrieve from it."""
    buffer = load_buffer(run)
    encode, _ = _encoder(run)
    retriever = in_turn(  # the first may write the index
        lambda: Retriever(
            buffer, encode=encode, kind=run.settings.retrieval.index, folder=run.buffer / "index"
        )
    )
    run.environment.remember(
        retriever,
        run.encoder.tokenize or encode,
        exclude_same_question=run.settings.retrieval.exclude_same_question,
        own_history=run.settings.retrieval.history == "own",
    )
    return buffer


def read_trajectories(run: Run) -> list[Trace]:
    """The kept trajectories of the buffer, for imitation."""
    path = run.buffer / "trajectories.jsonl"
    if path.is_file() and not path.stat().st_size:
        raise ValueError(
            f"{path}: the buffer holds single step traces alone, and imitation needs whole "
            "trajectories; add a file of them to buffer.files or sample with buffer.agent"
        )
    report = LineReport(str(path))
    return list(
        read_jsonl(path, _own_trace, malformed="fail", key="buffer.malformed", report=report)
    )


def _own_trace(record: Mapping[str, Any]) -> Trace:
    if record.keys() != set(Trace._fields):
        raise ValueError(f"holds {sorted(record)} and not {sorted(Trace._fields)}")
    return Trace(**record)


def _splitting(settings: RetrievalSettings) -> dict[str, Any]:
    return {"unit": settings.unit, "mask": settings.mask, "max_chars": settings.max_chars}


def _encoder(run: Run) -> tuple[Callable[[Sequence[str]], np.ndarray], str]:
    if run.encoder.tokenize is None:
        encoder = NgramEncoder.load(run.buffer / "encoder")
        return encoder, encoder.identity
    return text_encoder(run.encoder), run.encoder.identity
