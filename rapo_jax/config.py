"""The settings of a run: one frozen dataclass for each group of keys.

`configs/default.py` documents every key with its unit and its section of the paper;
`checks.read_settings` makes settings from a config and refuses what cannot work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ChainsSettings:
    seed: int
    n_entities: int
    n_train: int
    n_eval: int
    two_hop: int
    number: int
    hidden: int
    hidden_number: int


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    train: str
    eval: str
    documents: str
    manual_dir: str
    malformed: str


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    name: str
    metric: str
    reward: str
    data_dir: str
    chains: ChainsSettings
    dataset: DatasetSettings
    own: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    system: str


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    folder: str
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    mode: str
    coordinator: str
    processes: int
    process: int


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    folder: str
    vocab: int
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    rope_theta: float
    rope_type: str
    rope_factor: float
    rope_low_freq: float
    rope_high_freq: float
    rope_positions: int
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tied: bool
    init_scale: float
    dtype: str
    layer_unroll: int
    score_chunk: int


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    kind: str
    url: str
    key_variable: str
    cache: str
    deadline_s: float
    per_second: float
    concurrency: int


SANDBOX_LAYERS = (
    "user", "mount", "ipc", "network", "pid", "filesystem", "read_only", "dumpable",
    "parent_death", "CPU", "AS", "FSIZE", "CORE", "NOFILE", "NPROC", "capabilities",
    "no_new_privileges", "landlock", "seccomp",
)  # fmt: skip
"""What confines a program of the Python tool: namespaces, a user id of its own, a file system of
its own that is read-only, limits (RLIMIT_*), Landlock, and a filter of system calls."""


@dataclasses.dataclass(frozen=True)
class PythonSettings:
    require: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ToolsSettings:
    passages: int
    workers: int
    timeout_s: float
    memory_mb: int
    output_chars: int
    search_width: int
    own: tuple[tuple[str, ...], ...]
    python: PythonSettings
    search: SearchSettings


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
    driver: str


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    probability: float
    schedule: str
    noise: float
    unit: str
    exclude_same_question: bool
    encoder: str
    encoder_folder: str
    encoder_tokens: int
    width: int
    history: str
    mask: str
    max_chars: int
    index: str


@dataclasses.dataclass(frozen=True)
class BufferSettings:
    folder: str
    agent: str
    checkpoint: str
    files: tuple[str, ...]
    malformed: str
    questions: int
    samples: int
    keep: int
    expert_error: float
    include_answers: bool


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
class EvaluateSettings:
    every: int
    limit: int
    rows: int


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    input: str
    output: str
    batch_tokens: int


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    folder: str
    dtype: str
    shard_gb: float


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    every: int
    keep: int


@dataclasses.dataclass(frozen=True)
class LogSettings:
    trajectories: bool
    trajectory_every: int
    tensorboard: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int
    method: str
    stages: tuple[str, ...]
    task: TaskSettings
    prompt: PromptSettings
    tokenizer: TokenizerSettings
    mesh: MeshSettings
    distributed: DistributedSettings
    model: ModelSettings
    tools: ToolsSettings
    rollout: RolloutSettings
    retrieval: RetrievalSettings
    buffer: BufferSettings
    sft: SftSettings
    optimizer: OptimizerSettings
    rl: RlSettings
    evaluate: EvaluateSettings
    score: ScoreSettings
    export: ExportSettings
    checkpoint: CheckpointSettings
    log: LogSettings

    @property
    def n_hybrid(self) -> int:
        """Hybrid rollouts of a group; GRPO is RAPO with none."""
        return self.rollout.n_hybrid if self.method == "rapo" else 0
