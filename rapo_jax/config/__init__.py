"""The settings of a run: one frozen dataclass for each group of keys.

`schema/` declares every key once, with default, meaning and allowed values; `read.read_settings`
makes checked settings of a config. `python -m rapo_jax.config` prints docs/config.md.
"""

from __future__ import annotations

import dataclasses

from rapo_jax.config.keys import key, keys_of
from rapo_jax.config.methods import METHODS, MethodSettings
from rapo_jax.config.schema.buffer import BufferSettings, RetrievalSettings
from rapo_jax.config.schema.buffer import EndpointSettings as EndpointSettings
from rapo_jax.config.schema.model import LORA_TARGETS as LORA_TARGETS
from rapo_jax.config.schema.model import DistributedSettings, MeshSettings, ModelSettings
from rapo_jax.config.schema.model import LoraSettings as LoraSettings
from rapo_jax.config.schema.stages import (
    CheckpointSettings,
    EvaluateSettings,
    ExportSettings,
    LogSettings,
    PlanSettings,
    ScoreSettings,
    WatchdogSettings,
)
from rapo_jax.config.schema.stages import JudgeSettings as JudgeSettings
from rapo_jax.config.schema.task import PromptSettings, TaskSettings, TokenizerSettings
from rapo_jax.config.schema.tools import SANDBOX_LAYERS as SANDBOX_LAYERS
from rapo_jax.config.schema.tools import McpSettings as McpSettings
from rapo_jax.config.schema.tools import SearchIndexSettings, ToolsSettings
from rapo_jax.config.schema.tools import SearchSettings as SearchSettings
from rapo_jax.config.schema.training import (
    OptimizerSettings,
    RlSettings,
    RolloutSettings,
    SftSettings,
)

STAGES = {
    "sft": "cold start: imitates scripted demonstrations -> WORKDIR/coldstart",
    "buffer": "fills the Step-Trace Buffer by off-policy agents -> WORKDIR/buffer",
    "rl": "RL training by config.method: rollouts and updates -> WORKDIR/checkpoints",
    "evaluate": "held-out questions, greedy, without retrieval -> WORKDIR/result.json; and the "
    "sets in evaluate.suites -> WORKDIR/suites",
    "report": "curves, comparison and trajectories -> WORKDIR/report.html",
    "score": "log-probabilities and entropies of given tokens -> score.output",
    "export": "the weights as a Hugging Face folder -> export.folder",
    "plan": "memory and time that the run would need on other chips; needs no weights",
    "search_index": "a corpus of passages as an index on disk -> search_index.folder",
}
"""Stage -> what it does. sft to report run in this order, then score, export, search_index and
plan."""

NO_WEIGHTS = {"plan", "search_index"}
"""Stages that know a published model by its name, or need none."""

READERS = ("score", "export", "plan", "search_index")
"""Stages that open no run: they read weights, shapes or a corpus, and do not change the run."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    seed: int = key(
        0,
        "random seed of the run; synthetic tasks have task.chains.seed and task.pairs.seed",
        at_least=0,
        at_most=2**32 - 1,
    )
    method: str = key(
        "rapo",
        "how the policy is trained",
        choices={name: method.meaning for name, method in METHODS.items()},
    )
    protocol: str = key(
        "rapo",
        "how calls, observations and answers are written and read (docs/protocols.md)",
        choices={
            "rapo": "ours",
            "search_r1": "that of Search-R1",
            "search_o1": "that of Search-o1, evaluated only, with rollout.driver='host'",
            "tool_star": "that of Tool-Star",
            "chat_tools": "tool calls of the chat template: Hermes', Qwen's or Llama's",
            "module:NAME": "yours: a rapo_jax.text.protocols.Protocol",
        },
    )
    stages: tuple[str, ...] = key(
        ("sft", "buffer", "rl", "evaluate", "report"),
        "stages to run, each once",
        choices=STAGES,
        per_call=True,
    )
    task: TaskSettings = TaskSettings()
    prompt: PromptSettings = PromptSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    mesh: MeshSettings = MeshSettings()
    distributed: DistributedSettings = DistributedSettings()
    model: ModelSettings = ModelSettings()
    tools: ToolsSettings = ToolsSettings()
    rollout: RolloutSettings = RolloutSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    buffer: BufferSettings = BufferSettings()
    sft: SftSettings = SftSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    rl: RlSettings = RlSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    score: ScoreSettings = ScoreSettings()
    export: ExportSettings = ExportSettings()
    plan: PlanSettings = PlanSettings()
    search_index: SearchIndexSettings = SearchIndexSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    log: LogSettings = LogSettings()

    @property
    def of_method(self) -> MethodSettings:
        """What `method` needs and does."""
        return METHODS[self.method]

    @property
    def n_hybrid(self) -> int:
        """Hybrid rollouts of a group in training."""
        hybrid = self.of_method.hybrid or self.retrieval.always
        return self.rollout.n_hybrid if hybrid else 0

    @property
    def fresh_questions(self) -> int:
        """Questions of a rollout batch; past groups complete a step with fewer."""
        return self.rollout.questions - round(self.rollout.questions * self.rl.replay_share)

    @property
    def reads_buffer(self) -> bool:
        """Whether training reads the Step-Trace Buffer."""
        return self.of_method.buffer or self.n_hybrid > 0

    @property
    def suites_alone(self) -> bool:
        """Whether only suites are evaluated, so that the task's questions are not read."""
        return bool(self.evaluate.suites) and not {"sft", "buffer", "rl"} & set(self.stages)


KEYS = keys_of(Settings())
"""Every key with its default, by dotted name."""
