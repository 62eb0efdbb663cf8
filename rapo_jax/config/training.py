"""Settings: rollouts, updates, evaluation, and what a run keeps of them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    questions: int
    group_size: int
    n_hybrid: int
    max_calls: int
    prompt_tokens: int
    step_tokens: int
    observation_tokens: int
    retrieved_tokens: int
    max_tokens: int
    temperature: float
    chunks: int
    absorb_chunk: int
    driver: str


@dataclasses.dataclass(frozen=True)
class SftSettings:
    folder: str
    steps: int
    batch: int
    examples: int
    learning_rate: float
    warmup: int
    clip_norm: float
    checkpoint_every: int
    inject_share: float
    inject: float
    follow: float
    weak_first: float
    weak_habit: float
    weak_stop: float
    gate_one_hop: float
    gate_follow: float


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    learning_rate: float
    warmup: int
    schedule: str
    clip_norm: float
    b1: float
    b2: float
    eps: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class RlSettings:
    steps: int
    m: float
    a: float
    quality: str
    timing: str
    clip_low: float
    clip_high: float
    kl: float
    aggregation: str
    ddof: int
    std_floor: float
    entropy_floor: float
    epochs: int
    mini_batches: int
    micro_tokens: int
    buckets: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    url: str
    model: str
    key_variable: str
    cache: str
    deadline_s: float
    concurrency: int


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    every: int
    limit: int
    rows: int
    suites: tuple[str, ...]
    manual_dir: str
    scoring: str
    samples: int
    temperature: float
    judge: JudgeSettings


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    every: int
    keep: int


@dataclasses.dataclass(frozen=True)
class LogSettings:
    trajectories: bool
    trajectory_every: int
    tensorboard: bool
