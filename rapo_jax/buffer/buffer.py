"""The Step-Trace Buffer: step traces, their embedded keys, and a manifest (paper 4.1.1)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.buffer.sources import Imported
from rapo_jax.buffer.traces import (
    AgentTrajectory,
    StepTrace,
    best_of,
    group_by_question,
    make_items,
    split,
)

__all__ = [
    "Encoder",
    "StepTraceBuffer",
    "AgentTrajectory",
    "StepTrace",
    "best_of",
    "make_items",
    "split",
]

Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> [n, E] float32, rows of length 1 (or 0 where a text says nothing)."""

FORMAT = 1
_FILES = ("items.jsonl", "keys.npy", "manifest.json")


@dataclass(frozen=True, eq=False)
class StepTraceBuffer:
    """Items, their keys' embeddings `key_ME`, and a manifest of how they were made.

    `manifest['identity']` is a digest over all contents: two buffers with the same identity
    retrieve the same.
    """

    items: tuple[StepTrace, ...]
    key_ME: np.ndarray
    manifest: dict[str, Any]

    @classmethod
    def build(
        cls,
        traces: Sequence[AgentTrajectory],
        *,
        encode: Encoder,
        encoder_identity: str,
        tokenizer_fingerprint: str,
        keep: int,
        unit: str,
        include_answers: bool,
        mask: str,
        max_chars: int,
        count_tokens: Callable[[str], int],
        imported: Imported | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> StepTraceBuffer:
        """Filter, split and embed off-policy agents' trajectories (paper 4.1.1).

        `traces` are all trajectories, those of files included; of `imported` the single step traces
        are added as they are, and the manifest tells what came of each file; so it does of `about`.
        """
        kept = [
            trace for best in best_of(group_by_question(traces), keep).values() for trace in best
        ]
        items = [
            item
            for trace in kept
            for item in split(
                trace, unit=unit, include_answers=include_answers, mask=mask, max_chars=max_chars
            )
        ]
        if imported:
            items += imported.step_items(unit=unit, include_answers=include_answers)
        return cls.from_items(
            items,
            encode=encode,
            encoder_identity=encoder_identity,
            tokenizer_fingerprint=tokenizer_fingerprint,
            unit=unit,
            include_answers=include_answers,
            mask=mask,
            max_chars=max_chars,
            count_tokens=count_tokens,
            history={
                "keep": keep,
                "trajectories_sampled": len(traces),
                "trajectories_kept": len(kept),
                "trajectories_kept_by_origin": dict(Counter(trace.origin for trace in kept)),
                "mean_reward_sampled": _mean([trace.reward for trace in traces]),
                "mean_reward_kept": _mean([trace.reward for trace in kept]),
                **(imported.about() if imported else {}),
                **(about or {}),
            },
        )

    @classmethod
    def from_items(
        cls,
        items: Sequence[StepTrace],
        *,
        encode: Encoder,
        encoder_identity: str,
        tokenizer_fingerprint: str,
        unit: str,
        include_answers: bool,
        mask: str,
        max_chars: int,
        count_tokens: Callable[[str], int],
        history: dict[str, Any],
    ) -> StepTraceBuffer:
        """Embed items; `history` goes into the manifest."""
        if not items:
            raise ValueError("buffer: no step traces to store; sample trajectories with steps")
        key_ME = np.ascontiguousarray(encode([item.key for item in items]), np.float32)
        if key_ME.ndim != 2 or len(key_ME) != len(items) or not np.isfinite(key_ME).all():
            raise ValueError(
                f"encoder {encoder_identity}: gave shape {key_ME.shape} for {len(items)} keys, "
                "or numbers that are not finite; check its weights"
            )
        manifest = {
            "format": FORMAT,
            "unit": unit,
            "include_answers": include_answers,
            "mask": mask,
            "max_chars": max_chars,
            "encoder": encoder_identity,
            "tokenizer": tokenizer_fingerprint,
            "questions": len({item.question_id for item in items}),
            "traces": len(items),
            "traces_by_origin": dict(Counter(item.origin for item in items)),
            "tokens": sum(count_tokens(item.value) for item in items),
            **history,
        }
        manifest["identity"] = _identity(_lines(items), key_ME, manifest)
        return cls(items=tuple(items), key_ME=key_ME, manifest=manifest)

    @property
    def identity(self) -> str:
        return self.manifest["identity"]

    def save(self, folder: str | Path) -> None:
        """Write the buffer as a folder; a failure on the way leaves what was there before."""
        folder = Path(folder).absolute()
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _write(draft / "items.jsonl", _lines(self.items))
            with open(draft / "keys.npy", "wb") as file:
                np.save(file, self.key_ME, allow_pickle=False)
                _flush(file)
            _write(draft / "manifest.json", json.dumps(self.manifest, indent=1).encode())
            draft.chmod(0o755)
            if folder.exists():
                # A folder cannot be renamed onto a full one: the old one steps aside first.
                aside = draft.with_name(draft.name + ".old")
                folder.rename(aside)
                draft.rename(folder)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    @classmethod
    def load(
        cls, folder: str | Path, *, encoder_identity: str, tokenizer_fingerprint: str
    ) -> StepTraceBuffer:
        """Read a saved buffer; refuses one of another encoder or tokenizer, and a damaged one."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        for name, wanted in (("encoder", encoder_identity), ("tokenizer", tokenizer_fingerprint)):
            if manifest.get(name) != wanted:
                raise ValueError(
                    f"buffer {folder}: {name}={manifest.get(name)!r}, but this run has {wanted!r}; "
                    f"build the buffer again or use the {name} it was made with"
                )
        try:
            lines = (folder / "items.jsonl").read_bytes()
            key_ME = np.load(folder / "keys.npy", allow_pickle=False)
            items = tuple(StepTrace(**json.loads(line)) for line in lines.splitlines())
        except Exception as error:  # numpy, json, os: all say the same to the user
            raise ValueError(f"buffer {folder}: unreadable ({error}); build it again") from error
        if _identity(lines, key_ME, manifest) != manifest.get("identity"):
            raise ValueError(
                f"buffer {folder}: contents are not those of its manifest (cut off or edited); "
                "build it again"
            )
        if not items:
            raise ValueError(f"buffer {folder}: holds no step traces; build it again")
        return cls(items=items, key_ME=key_ME, manifest=manifest)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a saved buffer; ValueError where there is none to read."""
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"buffer {folder}: {', '.join(missing)} missing; run the buffer stage to build it"
        )
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["format"]
    except Exception as error:
        raise ValueError(f"buffer {folder}: unreadable ({error}); build it again") from error
    if version != FORMAT:
        raise ValueError(f"buffer {folder}: format={version}, needs {FORMAT}; build it again")
    return manifest


def _lines(items: Sequence[StepTrace]) -> bytes:
    return b"".join(json.dumps(item._asdict()).encode() + b"\n" for item in items)


def _identity(lines: bytes, key_ME: np.ndarray, manifest: dict[str, Any]) -> str:
    about = {name: value for name, value in manifest.items() if name != "identity"}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(hashlib.sha256(lines).digest())
    digest.update(f"{key_ME.dtype}{key_ME.shape}".encode())
    digest.update(np.ascontiguousarray(key_ME).tobytes())
    return digest.hexdigest()


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        _flush(file)


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
