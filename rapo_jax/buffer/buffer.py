"""The Step-Trace Buffer: step traces, their embedded keys, and a manifest (paper 4.1.1)."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from rapo_jax.buffer.trajectories import Splitting, StepTrace
from rapo_jax.io.files import whole_folder

Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> [n, E] float32, rows of length 1 (or 0 for a text without content)."""

Manifest: TypeAlias = dict[str, Any]
"""JSON: the splitting, encoder and tokenizer, counts of questions, step traces (`traces`) and their
tokens, `info` of the caller (filter, files, agents), and `identity`."""

FORMAT = 1
_STEP_TRACES, _KEYS, _MANIFEST = _FILES = ("items.jsonl", "keys.npy", "manifest.json")


@dataclass(frozen=True, eq=False)
class StepTraceBuffer:
    """Step traces, their keys' embeddings `key_ME`, and a manifest of how they were made.

    `manifest['identity']` is a digest over all contents: two buffers with the same identity
    retrieve the same.
    """

    step_traces: tuple[StepTrace, ...]
    key_ME: np.ndarray
    manifest: Manifest

    @classmethod
    def build(
        cls,
        step_traces: Sequence[StepTrace],
        splitting: Splitting,
        *,
        encode: Encoder,
        encoder_identity: str,
        tokenizer_fingerprint: str,
        count_tokens: Callable[[str], int],
        info: Mapping[str, object],
    ) -> StepTraceBuffer:
        """Embeds step traces that were made with `splitting`; `info` is added to the manifest.

        Raises:
            ValueError: there are no step traces, or the encoder gives no finite key for each.
        """
        if not step_traces:
            raise ValueError("buffer: no step traces to store; sample trajectories with steps")
        keys = [step_trace.key for step_trace in step_traces]
        key_ME = np.ascontiguousarray(encode(keys), np.float32)
        if reason := _wrong_keys(key_ME, len(keys)):
            raise ValueError(f"encoder {encoder_identity}: gave {reason}; check its weights")
        manifest = {
            "format": FORMAT,
            **splitting._asdict(),
            "encoder": encoder_identity,
            "tokenizer": tokenizer_fingerprint,
            "questions": len({step_trace.question_id for step_trace in step_traces}),
            "traces": len(step_traces),
            "traces_by_origin": dict(Counter(step_trace.origin for step_trace in step_traces)),
            "tokens": sum(count_tokens(step_trace.value) for step_trace in step_traces),
            **info,
        }
        manifest["identity"] = _identity(_lines(step_traces), key_ME, manifest)
        return cls(tuple(step_traces), key_ME, manifest)

    @property
    def identity(self) -> str:
        return self.manifest["identity"]

    def save(self, folder: str | Path) -> None:
        """Writes the buffer as a folder; after a failure the old contents are still there."""
        with whole_folder(Path(folder).absolute()) as draft:
            _write(draft / _STEP_TRACES, _lines(self.step_traces))
            with open(draft / _KEYS, "wb") as file:
                np.save(file, self.key_ME, allow_pickle=False)
                _flush(file)
            _write(draft / _MANIFEST, json.dumps(self.manifest, indent=1).encode())

    @classmethod
    def load(
        cls, folder: str | Path, *, encoder_identity: str, tokenizer_fingerprint: str
    ) -> StepTraceBuffer:
        """Reads a saved buffer.

        Raises:
            ValueError: it is damaged, or was built with another encoder or tokenizer.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name, wanted in (("encoder", encoder_identity), ("tokenizer", tokenizer_fingerprint)):
            if manifest.get(name) != wanted:
                raise ValueError(
                    f"buffer {folder}: {name}={manifest.get(name)!r}, but this run has {wanted!r}; "
                    f"build the buffer again or use the {name} it was made with"
                )
        try:
            lines = (folder / _STEP_TRACES).read_bytes()
            key_ME = np.load(folder / _KEYS, allow_pickle=False)
            step_traces = tuple(StepTrace(**json.loads(line)) for line in lines.splitlines())
        except Exception as error:  # of numpy, json or os
            raise ValueError(f"buffer {folder}: unreadable ({error}); build it again") from error
        if _identity(lines, key_ME, manifest) != manifest.get("identity"):
            raise ValueError(
                f"buffer {folder}: the contents do not match the manifest (cut off or edited); "
                "build it again"
            )
        if not step_traces:
            raise ValueError(f"buffer {folder}: holds no step traces; build it again")
        if reason := _wrong_keys(key_ME, len(step_traces)):
            raise ValueError(f"buffer {folder}: {_KEYS} has {reason}; build it again")
        return cls(step_traces, key_ME, manifest)


def _read_manifest(folder: Path) -> Manifest:
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"buffer {folder}: {', '.join(missing)} missing; run the buffer stage to build it"
        )
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except Exception as error:
        raise ValueError(f"buffer {folder}: unreadable ({error}); build it again") from error
    if version != FORMAT:
        raise ValueError(f"buffer {folder}: format={version}, needs {FORMAT}; build it again")
    return manifest


def _wrong_keys(key_ME: np.ndarray, count: int) -> str:
    """Why an array cannot hold the embeddings of `count` keys, "" where it can."""
    if key_ME.ndim != 2 or len(key_ME) != count:
        return f"shape {key_ME.shape} for {count} step traces"
    return "" if np.isfinite(key_ME).all() else "numbers that are not finite"


def _lines(step_traces: Sequence[StepTrace]) -> bytes:
    return b"".join(json.dumps(row._asdict()).encode() + b"\n" for row in step_traces)


def _identity(lines: bytes, key_ME: np.ndarray, manifest: Manifest) -> str:
    contents = {name: value for name, value in manifest.items() if name != "identity"}
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
    digest.update(hashlib.sha256(lines).digest())
    digest.update(f"{key_ME.dtype}{key_ME.shape}".encode())
    digest.update(np.ascontiguousarray(key_ME).tobytes())
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        _flush(file)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
