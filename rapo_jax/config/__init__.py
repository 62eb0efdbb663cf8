"""The settings of a run: one frozen dataclass for each group of keys.

`configs/default.py` documents every key with its unit and its section of the paper;
`checks.read_settings` makes settings from a config and refuses what cannot work.
"""

from __future__ import annotations

import dataclasses

from rapo_jax.config.host import (
    SANDBOX_LAYERS,
    BufferSettings,
    ChainsSettings,
    DatasetSettings,
    EndpointSettings,
    PromptSettings,
    PythonSettings,
    RetrievalSettings,
    SearchIndexSettings,
    SearchSettings,
    TaskSettings,
    TokenizerSettings,
    ToolsSettings,
)
from rapo_jax.config.model import (
    DistributedSettings,
    ExportSettings,
    LoraSettings,
    MeshSettings,
    ModelSettings,
    PlanSettings,
    ScoreSettings,
)
from rapo_jax.config.training import (
    CheckpointSettings,
    EvaluateSettings,
    JudgeSettings,
    LogSettings,
    OptimizerSettings,
    RlSettings,
    RolloutSettings,
    SftSettings,
)

__all__ = [
    "BufferSettings",
    "ChainsSettings",
    "CheckpointSettings",
    "DatasetSettings",
    "DistributedSettings",
    "EndpointSettings",
    "EvaluateSettings",
    "ExportSettings",
    "JudgeSettings",
    "LogSettings",
    "LoraSettings",
    "MeshSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PlanSettings",
    "PromptSettings",
    "PythonSettings",
    "RetrievalSettings",
    "RlSettings",
    "RolloutSettings",
    "SANDBOX_LAYERS",
    "ScoreSettings",
    "SearchIndexSettings",
    "SearchSettings",
    "Settings",
    "SftSettings",
    "TaskSettings",
    "TokenizerSettings",
    "ToolsSettings",
]


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
    search_index: SearchIndexSettings
    plan: PlanSettings
    checkpoint: CheckpointSettings
    log: LogSettings

    @property
    def n_hybrid(self) -> int:
        """Hybrid rollouts of a group; GRPO is RAPO with none."""
        return self.rollout.n_hybrid if self.method == "rapo" else 0

    @property
    def suites_alone(self) -> bool:
        """Whether suites are all that is asked for: the task's own questions are not read then."""
        return bool(self.evaluate.suites) and not {"sft", "buffer", "rl"} & set(self.stages)
