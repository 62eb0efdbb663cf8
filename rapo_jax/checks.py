"""The one reader of config: a mapping becomes frozen settings, and every value is checked.

All errors are `ValueError`s that name the key, the value and the remedy, and they come before
anything is compiled.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapo_jax.config import SANDBOX_LAYERS, Settings

METHODS = ("rapo", "grpo", "sft")
READERS = ("score", "export")
"""Stages that open no run: they read weights and leave the workdir as it is."""
STAGES = ("sft", "buffer", "rl", "evaluate", "report", *READERS)


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Frozen, checked settings of a config mapping.

    Raises:
        ValueError: names the offending key, its value and the remedy.
    """
    settings = _group(Settings, config, "")
    check(settings)
    return settings


def _convert(kind: Any, value: Any, path: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _group(kind, value, path)
    if typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)[0]
        single = isinstance(value, str) or not hasattr(value, "__iter__")
        nested = typing.get_origin(each) is tuple
        if single or (nested and any(isinstance(x, str) for x in value)):
            form = "(('a', 'b'),)" if nested else "('a', 'b')"
            raise ValueError(f"{path}={value!r}: expected a tuple such as {form}")
        return tuple(_convert(each, x, path) for x in value)
    if typing.get_origin(kind) is Mapping and isinstance(value, Mapping):
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{path}={value!r}: expected {kind.__name__}")
    return value


def _group(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}={values!r}: expected a group of keys")
    kinds = typing.get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in kinds:
            near = difflib.get_close_matches(str(key), kinds, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(kinds)}"
            raise ValueError(f"{prefix}{key}: unknown config key{hint}")
    missing = [key for key in kinds if key not in values]
    if missing:
        raise ValueError(
            f"{prefix}{missing[0]}: missing config key; start your config from configs/default.py"
        )
    return cls(**{key: _convert(kinds[key], values[key], prefix + key) for key in kinds})


def _require(holds: bool, key: str, value: Any, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{key}={value!r}: {remedy}")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    _require(value in known, key, value, f"expected one of {', '.join(known)}{hint}")


CHOICES = {
    "method": METHODS,
    "distributed.mode": ("off", "auto", "explicit"),
    "rollout.driver": ("scan", "host"),
    "retrieval.schedule": ("constant", "linear", "cosine"),
    "retrieval.unit": ("step", "trajectory"),
    "retrieval.history": ("full", "own"),
    "retrieval.encoder": ("ngram", "minilm"),
    "retrieval.index": ("auto", "exact", "brute", "tree"),
    "buffer.agent": ("scripted", "checkpoint", "none"),
    "buffer.malformed": ("skip", "fail"),
    "optimizer.schedule": ("constant", "linear", "cosine"),
    "rl.quality": ("decrease", "increase", "off"),
    "rl.timing": ("high", "low", "off"),
    "rl.aggregation": ("sequence_mean", "token_mean", "sequence_sum"),
    "model.dtype": ("float32", "bfloat16"),
    "model.rope_type": ("default", "llama3"),
    "export.dtype": ("same", "float32", "bfloat16"),
    "task.name": ("chains", "dataset", "module:TASK"),
    "task.dataset.malformed": ("skip", "fail"),
    "task.metric": ("f1", "math"),
    "tools.search.kind": ("local", "retrieval", "bing", "serper", "searxng"),
}


def _read(settings: Settings, path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _check_stages(stages: tuple[str, ...]) -> None:
    for stage in stages:
        # The flag --config.stages=rl,evaluate arrives as the one stage 'rl,evaluate'.
        parts = [part.strip(" '\"()[]") for part in stage.split(",")]
        working = "(" + ",".join(repr(part) for part in parts if part) + ")"
        _require(len(parts) == 1, "stages", stages, f'write a tuple: --config.stages="{working}"')
        _one_of("stages", stage, STAGES)


def check(s: Settings) -> None:
    """Refuses values that cannot work, before any compile. Raises ValueError."""
    own = ":" in s.task.name
    for key, known in CHOICES.items():
        if key != "task.name" or not own:
            _one_of(key, _read(s, key), known)
    _require(own or not s.task.own, "task.own", s.task.own, "only task.name='module:TASK' reads it")
    _check_stages(s.stages)
    _check_distributed(s)
    for layer in s.tools.python.require:
        _one_of("tools.python.require", layer, ("all", *SANDBOX_LAYERS))
    for key in (
        "retrieval.probability retrieval.noise buffer.expert_error sft.inject_share sft.inject "
        "sft.follow sft.weak_first sft.weak_habit sft.weak_stop sft.gate_one_hop "
        "sft.gate_follow"
    ).split():
        _require(0 <= _read(s, key) <= 1, key, _read(s, key), "a probability lies in [0, 1]")
    for key in (
        "rollout.questions rollout.prompt_tokens rollout.step_tokens rollout.observation_tokens "
        "rollout.retrieved_tokens buffer.samples buffer.keep buffer.questions sft.batch sft.steps "
        "sft.examples rl.steps rl.epochs rl.mini_batches rl.micro_tokens evaluate.rows "
        "checkpoint.every checkpoint.keep log.trajectory_every tools.workers tools.passages "
        "tools.output_chars tools.memory_mb model.score_chunk model.rope_positions "
        "score.batch_tokens tools.search.concurrency"
    ).split():
        _require(_read(s, key) >= 1, key, _read(s, key), "must be at least 1")
    r = s.rollout
    _require(
        r.group_size >= 2,
        "rollout.group_size",
        r.group_size,
        "a group-relative advantage needs at least 2 rollouts per question",
    )
    _require(
        0 <= r.n_hybrid <= r.group_size,
        "rollout.n_hybrid",
        r.n_hybrid,
        f"hybrid rollouts are part of the group: 0 … rollout.group_size={r.group_size}",
    )
    _require(
        r.max_tokens > r.prompt_tokens,
        "rollout.max_tokens",
        r.max_tokens,
        f"a row holds the prompt too: more than rollout.prompt_tokens={r.prompt_tokens}",
    )
    _require(
        r.questions % s.rl.mini_batches == 0,
        "rl.mini_batches",
        s.rl.mini_batches,
        f"must divide rollout.questions={r.questions}: a group stays in one mini-batch",
    )
    _require(
        bool(s.rl.buckets) and tuple(sorted(s.rl.buckets)) == s.rl.buckets,
        "rl.buckets",
        s.rl.buckets,
        "ascending row widths in tokens, such as (64, 128)",
    )
    _require(
        s.rl.buckets[-1] >= r.max_tokens,
        "rl.buckets",
        s.rl.buckets,
        f"the widest must hold rollout.max_tokens={r.max_tokens}",
    )
    _require(
        s.model.heads % s.model.kv_heads == 0,
        "model.kv_heads",
        s.model.kv_heads,
        f"must divide model.heads={s.model.heads}",
    )
    _require(s.model.head_width % 2 == 0, "model.head_width", s.model.head_width, "must be even")
    _require(
        s.model.rope_high_freq > s.model.rope_low_freq > 0,
        "model.rope_high_freq",
        s.model.rope_high_freq,
        f"must be more than model.rope_low_freq={s.model.rope_low_freq}, both above 0",
    )
    positive = "model.rope_theta model.rope_factor export.shard_gb tools.search.deadline_s"
    for key in positive.split():
        _require(_read(s, key) > 0, key, _read(s, key), "must be more than 0")
    _require(s.rl.ddof in (0, 1), "rl.ddof", s.rl.ddof, "0 or 1")
    for key in (
        "rl.std_floor rl.clip_low rl.clip_high rl.m rl.a rl.kl rollout.temperature "
        "rollout.max_calls evaluate.every evaluate.limit tools.search.per_second"
    ).split():
        _require(_read(s, key) >= 0, key, _read(s, key), "must be at least 0")
    _require(
        s.rl.entropy_floor > 0,
        "rl.entropy_floor",
        s.rl.entropy_floor,
        "H_before may be 0 and divides (eq. 5): a small positive number of nats, such as 1e-6",
    )
    _require(
        s.buffer.keep <= s.buffer.samples,
        "buffer.keep",
        s.buffer.keep,
        f"cannot keep more than buffer.samples={s.buffer.samples}",
    )
    _require(
        s.buffer.agent != "checkpoint" or bool(s.buffer.checkpoint),
        "buffer.checkpoint",
        s.buffer.checkpoint,
        "buffer.agent='checkpoint' needs the checkpoint folder of the agent to sample",
    )
    _require(
        s.buffer.agent != "none" or bool(s.buffer.files),
        "buffer.files",
        s.buffer.files,
        "buffer.agent='none' needs files of traces to fill the buffer with",
    )
    if s.task.name == "dataset":
        _check_dataset(s)
    if "buffer" in s.stages:
        for file in s.buffer.files:
            _require(Path(file).is_file(), "buffer.files", file, "there is no such file")


def _check_distributed(s: Settings) -> None:
    d, explicit = s.distributed, s.distributed.mode == "explicit"
    host, _, port = d.coordinator.rpartition(":")
    for key, unset, works, remedy in (
        ("coordinator", "", host and port.isdigit(), "host:port of process 0, '10.0.0.1:1234'"),
        ("processes", 1, d.processes >= 1, "must be at least 1"),
        (
            "process",
            0,
            0 <= d.process < d.processes,
            f"0 … distributed.processes={d.processes} - 1",
        ),
    ):
        value, only = getattr(d, key), "only distributed.mode='explicit' reads it"
        holds = bool(works) if explicit else value == unset
        _require(holds, f"distributed.{key}", value, remedy if explicit else only)
    readers = "score and export run in one process: set distributed.mode='off'"
    _require(d.mode == "off" or not set(s.stages) & set(READERS), "stages", s.stages, readers)


def _check_dataset(s: Settings) -> None:
    """A data set brings questions alone: no corpus unless it is named, and no scripted agent."""
    remedy = "task.name='dataset' needs a file of questions or a published set, as 'gsm8k:train'"
    for key in ("task.dataset.train", "task.dataset.eval"):
        _require(bool(_read(s, key).strip()), key, _read(s, key), remedy)
    own_search = any(pair[:1] == ("search",) for pair in s.tools.own)
    _require(
        s.tools.search.kind != "local" or own_search or bool(s.task.dataset.documents),
        "task.dataset.documents",
        s.task.dataset.documents,
        "tools.search.kind='local' searches this corpus (JSON lines): name one, or search a "
        "service (tools.search.kind='retrieval')",
    )
    check_unscripted(s)


def check_unscripted(s: Settings) -> None:
    """Refuses what only a task with scripted agents can do."""
    gate = "decisions to measure a gate by: set it to 0"
    for key, holds, remedy in (
        (
            "model.folder",
            bool(s.model.folder),
            "scripted agent to learn from: name a Hugging Face folder of an instruct model",
        ),
        (
            "stages",
            "sft" not in s.stages,
            "demonstrations for a cold start: leave 'sft' out and start from model.folder",
        ),
        (
            "buffer.agent",
            s.buffer.agent != "scripted" or "buffer" not in s.stages,
            "scripted agent: bring traces (buffer.files with buffer.agent='none') or sample a "
            "policy (buffer.agent='checkpoint')",
        ),
        ("sft.gate_one_hop", s.sft.gate_one_hop == 0, gate),
        ("sft.gate_follow", s.sft.gate_follow == 0, gate),
    ):
        _require(holds, key, _read(s, key), f"task.name={s.task.name!r} has no {remedy}")
