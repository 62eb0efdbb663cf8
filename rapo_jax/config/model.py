"""Settings: the model, where it is placed, and the stages that only read one."""

from __future__ import annotations

import dataclasses


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
class LoraSettings:
    rank: int
    alpha: float
    targets: tuple[str, ...]
    merge: bool


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
    remat: str
    attention: str
    lora: LoraSettings


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    input: str
    output: str
    batch_tokens: int


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    topology: str
    compile: bool


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    folder: str
    dtype: str
    shard_gb: float
