"""Reads a finished Step-Trace Buffer for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from rapo_jax.buffer.buffer import StepTraceBuffer
from rapo_jax.buffer.retriever import Retriever
from rapo_jax.buffer.trajectories import AgentTrajectory, Splitting
from rapo_jax.config import Settings
from rapo_jax.distributed import in_turn, is_first
from rapo_jax.io.files import Json
from rapo_jax.io.jsonl import LineReport, read_jsonl
from rapo_jax.run.run import Run
from rapo_jax.sampling.encoders import DeviceEncoder
from rapo_jax.search.ngram import NgramEncoder

ENCODE_ROWS = 64
"""Texts that MiniLM embeds at a time when a buffer is built: one shape, one compilation."""
TextEncoder: TypeAlias = Callable[[Sequence[str]], np.ndarray]
FILLED_BY = (
    *("agent", "temperature", "split", "questions"),
    *("samples", "keep", "least_reward", "expert_error"),
)
"""Keys of `config.buffer` that choose its trajectories; `buffer.files` is compared apart."""


def text_encoder(encoder: DeviceEncoder) -> TextEncoder:
    """Key texts -> keys outside a rollout, for an encoder that runs on the device."""
    tokenize = encoder.tokenize
    assert tokenize is not None
    program = jax.jit(encoder.embed)

    def encode(texts: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), ENCODE_ROWS):
            some = list(texts[start : start + ENCODE_ROWS])
            padded = some + [""] * (ENCODE_ROWS - len(some))
            parts.append(np.asarray(program(tokenize(padded)))[: len(some)])
        return np.concatenate(parts)

    return encode


def each_text_once(encode: TextEncoder) -> TextEncoder:
    """The same encoder, which is given equal texts once: masked keys have many."""

    def encode_distinct(texts: Sequence[str]) -> np.ndarray:
        place_of = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return encode(list(place_of))[[place_of[text] for text in texts]]

    return encode_distinct


def load_buffer(run: Run) -> StepTraceBuffer:
    """The saved buffer. Prints with which keys of `FILLED_BY` it was filled, where they differ.

    Raises:
        ValueError: it is not there, or was built with another tokenizer, encoder, splitting or
        other files.
    """
    if not run.buffer.is_dir():
        remedy = "run the stage 'buffer' first, or name a finished one"
        raise ValueError(f"buffer.folder={str(run.buffer)!r}: there is no such folder; {remedy}")
    _, identity = key_encoder(run)
    buffer = StepTraceBuffer.load(
        run.buffer / "traces",
        encoder_identity=identity,
        tokenizer_fingerprint=run.tokens.fingerprint,
    )
    for name, wanted in splitting(run.settings)._asdict().items():
        built = buffer.manifest.get(name, wanted)  # manifests of early versions lack some
        if built != wanted:
            group = "buffer" if name == "include_answers" else "retrieval"
            raise ValueError(
                f"{group}.{name}={wanted!r}: the buffer {run.buffer} was built with {built!r}; "
                "set it back, or point buffer.folder to a new folder"
            )
    names = [Path(path).name for path in run.settings.buffer.files]
    held = [file["name"] for file in buffer.manifest.get("files", [])]
    if names and names != held:
        raise ValueError(
            f"buffer.files={names}: the buffer {run.buffer} was built with {held}; "
            "set it back, or point buffer.folder to a new folder"
        )
    filled = buffer.manifest.get("filled_by", {})  # manifests of early versions lack it
    now = filled_by(run.settings)
    others = [
        f"{key}={was!r} (here {now[key]!r})" for key, was in filled.items() if was != now[key]
    ]
    if others and is_first():
        print(f"[buffer] {run.buffer} was filled with {', '.join(others)}", flush=True)
    return buffer


def filled_by(settings: Settings) -> dict[str, Json]:
    """How a buffer of these settings is filled, for its manifest: dotted key -> value."""
    return {f"buffer.{name}": getattr(settings.buffer, name) for name in FILLED_BY}


def attach_buffer(run: Run) -> StepTraceBuffer:
    """Loads the buffer and makes the environment retrieve from it."""
    buffer = load_buffer(run)
    encode, _ = key_encoder(run)
    retriever = in_turn(  # the first may write the index
        lambda: Retriever(buffer, kind=run.settings.retrieval.index, folder=run.buffer / "index")
    )
    run.environment.use_buffer(
        retriever,
        run.encoder.tokenize or encode,
        exclude_same_question=run.settings.retrieval.exclude_same_question,
        without_retrieved_history=run.settings.retrieval.history == "without_retrieved",
    )
    return buffer


def read_trajectories(run: Run) -> list[AgentTrajectory]:
    """The kept trajectories of the buffer, for imitation."""
    path = run.buffer / "trajectories.jsonl"
    if path.is_file() and not path.stat().st_size:
        raise ValueError(
            f"{path}: the buffer holds single step traces alone, and imitation needs whole "
            "trajectories; add a file of them to buffer.files or sample with buffer.agent"
        )
    report = LineReport(str(path))
    return list(
        read_jsonl(path, _trajectory_of, malformed="fail", key="buffer.malformed", report=report)
    )


def _trajectory_of(record: Mapping[str, Any]) -> AgentTrajectory:
    if record.keys() != set(AgentTrajectory._fields):
        raise ValueError(f"holds {sorted(record)} and not {sorted(AgentTrajectory._fields)}")
    return AgentTrajectory(**record)


def splitting(settings: Settings) -> Splitting:
    """How the settings split trajectories into step traces."""
    r = settings.retrieval
    return Splitting(r.unit, settings.buffer.include_answers, r.mask, r.max_chars)


def key_encoder(run: Run) -> tuple[TextEncoder, str]:
    """The encoder of key texts on the host, and its identity."""
    if run.encoder.tokenize is None:
        encoder = NgramEncoder.load(run.buffer / "encoder")
        return encoder, encoder.identity
    return text_encoder(run.encoder), run.encoder.identity
