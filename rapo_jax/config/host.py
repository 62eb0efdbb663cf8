"""Settings: what the host serves: tasks, prompts, tokenizer, tools, and the Step-Trace Buffer."""

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
    user_arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    system: str


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    folder: str
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    kind: str
    url: str
    index: str
    key_variable: str
    cache: str
    deadline_s: float
    per_second: float
    concurrency: int


@dataclasses.dataclass(frozen=True)
class SearchIndexSettings:
    corpus: str
    folder: str
    encoder: str
    encoder_folder: str
    encoder_tokens: int
    width: int
    kind: str
    recall: float
    memory_mb: int
    malformed: str


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
    user_tools: tuple[tuple[str, ...], ...]
    python: PythonSettings
    search: SearchSettings


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
class EndpointSettings:
    url: str
    model: str
    key_variable: str
    temperature: float
    step_tokens: int
    max_calls_total: int
    max_tokens_total: int
    concurrency: int
    deadline_s: float


@dataclasses.dataclass(frozen=True)
class BufferSettings:
    folder: str
    agent: str
    checkpoint: str
    temperature: float
    endpoint: EndpointSettings
    files: tuple[str, ...]
    malformed: str
    questions: int
    samples: int
    keep: int
    expert_error: float
    include_answers: bool

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents to sample, in their order."""
        return _names(self.agent)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The policies of the agent 'checkpoint'."""
        return _names(self.checkpoint)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))
