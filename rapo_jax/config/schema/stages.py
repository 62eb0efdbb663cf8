"""Keys of evaluation, of the other stages, and of the files that a run writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rapo_jax.config.keys import EXTRA_BODY, key


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """A language model as judge of the suites' answers, beside their metric."""

    PER_CALL = True

    url: str = key("", "base of an OpenAI-compatible endpoint, http://host:8000/v1; '' = no judge")
    model: str = key("", "name of the model there")
    key_variable: str = key("", "environment variable with the API key; '' = no key is sent")
    reply_tokens: int = key(
        1024,
        "most of one reply, thoughts included; one that is cut off is tried again with 4 and 16 "
        "times as many",
        unit="tokens",
        at_least=1,
    )
    extra_body: Mapping[str, object] = key({}, EXTRA_BODY)
    cache: str = key("", "SQLite file of its replies; '' = WORKDIR/suites/judge.sqlite")
    deadline_s: float = key(60.0, "time of one call with its retries", unit="seconds", above=0)
    concurrency: int = key(8, "calls at the same time", at_least=1)


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """Held-out questions, and published sets ('suites', docs/evaluation.md).

    The results of each suite record the weights, samples, temperature, scoring and judge that they
    were made with.
    """

    every: int = key(
        0,
        "time between evaluations on held-out questions; 0 = only at the end",
        unit="RL steps",
        at_least=0,
        per_call=True,
    )
    limit: int = key(0, "most questions; 0 = all", at_least=0)
    rows: int = key(256, "most questions at the same time", at_least=1, per_call=True)
    suites: tuple[str, ...] = key(
        (),
        "published sets or files to evaluate the newest weights on, such as "
        "('gsm8k', 'gaia:level1', 'mine.jsonl[:200]')",
        paper="sec. 5.1",
        per_call=True,
    )
    manual_dir: str = key(
        "", "their folder, MANUAL_DIR/gsm8k/test.jsonl; '' = task.dataset's", per_call=True
    )
    scoring: str = key(
        "official",
        "how suites are scored",
        choices={
            "official": "as the papers' evaluation does",
            "strict": "as the outcome reward does",
        },
        per_call=True,
    )
    samples: int = key(
        1,
        "k, answers of a question, for avg@k and pass@k; more than 1 need a temperature",
        at_least=1,
        per_call=True,
    )
    temperature: float = key(
        0.0, "sampling temperature of the suites; 0 = greedy", at_least=0, per_call=True
    )
    judge: JudgeSettings = JudgeSettings()


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """Stage score: log-probabilities and entropies of given tokens under the newest weights."""

    PER_CALL = True

    input: str = key("", 'JSON lines {"tokens": [...]}')
    output: str = key(
        "",
        'JSON lines to write, {"logp": [...], "entropy": [...]}, from the second token on',
        unit="nats",
    )
    batch_tokens: int = key(8192, "size of one forward pass", unit="tokens", at_least=1)


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """Stage export: the newest weights as a Hugging Face folder."""

    PER_CALL = True

    folder: str = key("", "folder to write")
    dtype: str = key(
        "same",
        "type of the weights",
        choices={
            "same": "that of model.folder, float32 without one",
            "float32": "",
            "bfloat16": "",
        },
    )
    shard_gb: float = key(5.0, "largest safetensors file", unit="GB (1e9 bytes)", above=0)


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """Stage plan: memory and time that the run would need on other chips (docs/plan.md)."""

    PER_CALL = True

    topology: str = key(
        "",
        "chips, with commas between several: TPU slices v5e:8x8, v5p:2x2x4, v6e:16x16; GPUs "
        "h100x8; v5e or h200: the smallest number that fits; gpu: the same of H100 and H200",
    )
    compile: bool = key(
        False,
        "compile the programs for these chips too (launch/plan.sh has libtpu and the CUDA plugin)",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Checkpoints of RL."""

    PER_CALL = True

    every: int = key(10, "time between checkpoints", unit="RL steps", at_least=1)
    keep: int = key(2, "newest checkpoints that are kept", at_least=1)
    export_every: int = key(
        0,
        "time between exports to WORKDIR/exports/STEP, as stage export writes them; 0 = none; all "
        "are kept",
        unit="RL steps",
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class WatchdogSettings:
    """Watchdog: ends a run that hangs (docs/reliability.md)."""

    PER_CALL = True

    after_s: float = key(
        14_400.0,
        "time without the end of a step or batch after which the run is ended, with the stacks of "
        "its threads; 0: never",
        unit="seconds",
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """Files that are written for people."""

    PER_CALL = True

    trajectories: bool = key(False, "write WORKDIR/trajectories.jsonl")
    trajectory_every: int = key(10, "time between trajectories", unit="RL steps", at_least=1)
    samples_every: int = key(
        0,
        "time between sample texts of held-out questions, taken from the evaluations of "
        "evaluate.every; 0 = none",
        unit="RL steps",
        at_least=0,
    )
    tensorboard: bool = key(True, "write metrics for TensorBoard")
    wandb: str = key("", "project of Weights & Biases (docs/usage.md); '' = none")
