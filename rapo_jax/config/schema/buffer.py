"""Keys of the Step-Trace Buffer and of retrieval from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rapo_jax.config.keys import EXTRA_BODY, fraction, key, names
from rapo_jax.config.schema.task import MALFORMED
from rapo_jax.config.schema.tools import ENCODERS, MINILM_FOLDER


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """When a hybrid rollout retrieves a step trace, and how the nearest one is searched."""

    always: bool = key(
        False,
        "rollout.n_hybrid rollouts of a group may retrieve whatever the method is; else those of "
        "method='rapo' alone",
    )
    probability: float = fraction(
        0.5, "chance of a retrieval at a step boundary of a hybrid rollout", paper="sec. 4.1.3"
    )
    schedule: str = key(
        "constant",
        "how the probability changes over rl.steps",
        choices={"constant": "not at all", "linear": "falls to 0", "cosine": "falls to 0"},
    )
    choice: str = key(
        "none",
        "which agent's traces a hybrid rollout reads",
        choices={"none": "all", "learned": "one, by what its traces earned"},
    )
    noise: float = fraction(0.0, "share p of retrievals that give a random trace", paper="fig. 6")
    unit: str = key(
        "step",
        "what a retrieval gives",
        paper="fig. 7",
        choices={"step": "one step trace", "trajectory": "a whole trajectory, once (w/ TO)"},
    )
    exclude_same_question: bool = key(False, "never retrieve a trace of the present question")
    encoder: str = key("ngram", "encoder of keys and queries", paper="sec. 4.1.1", choices=ENCODERS)
    encoder_folder: str = key("", MINILM_FOLDER)
    encoder_tokens: int = key(256, "most of a key that MiniLM reads", unit="tokens")
    width: int = key(256, "width of the embeddings of the built-in encoder")
    history: str = key(
        "full",
        "the history in a query",
        choices={
            "full": "with the retrieved traces",
            "without_retrieved": "without the retrieved traces",
        },
    )
    mask: str = key("", "regex; what matches, such as names and numbers, is '#' in a key")
    max_chars: int = key(4000, "most of a key: question and most recent part", unit="characters")
    index: str = key(
        "auto",
        "how keys are searched",
        choices={
            "auto": "brute, or tree if the buffer is large",
            "exact": "all keys, in NumPy",
            "brute": "all keys, in ScaNN",
            "tree": "a ScaNN tree",
        },
    )


@dataclasses.dataclass(frozen=True)
class EndpointSettings:
    """buffer.agent='endpoint': an OpenAI-compatible chat model that calls our tools."""

    url: str = key("", "base of the endpoint, such as http://localhost:8000/v1")
    model: str = key("", "name of the model there")
    key_variable: str = key(
        "", "environment variable with the API key; '' = no key is sent", per_call=True
    )
    temperature: float = key(1.0, "sampling temperature", at_least=0)
    step_tokens: int = key(1024, "most of one answer", unit="tokens", at_least=1)
    extra_body: Mapping[str, object] = key({}, EXTRA_BODY)
    max_calls_total: int = key(
        100_000, "most calls in all builds; 0 = no limit", at_least=0, per_call=True
    )
    max_tokens_total: int = key(
        100_000_000,
        "most tokens, read and written, in all builds; 0 = no limit",
        unit="tokens",
        at_least=0,
        per_call=True,
    )
    concurrency: int = key(16, "trajectories at the same time", at_least=1, per_call=True)
    deadline_s: float = key(
        120.0, "time of one call with its retries", unit="seconds", above=0, per_call=True
    )


@dataclasses.dataclass(frozen=True)
class BufferSettings:
    """The Step-Trace Buffer and the off-policy agents that fill it (docs/buffer.md)."""

    folder: str = key("", "folder of the buffer, filled unless it exists; '' = WORKDIR/buffer")
    agent: str = key(
        "scripted",
        "who fills it; several agents are separated by commas",
        paper="sec. 4.1.1",
        choices={
            "scripted": "the task's expert",
            "checkpoint": "the policies in buffer.checkpoint",
            "endpoint": "the chat model of buffer.endpoint",
            "none": "only the files",
        },
        several=True,
    )
    checkpoint: str = key(
        "", "policies to sample: workdirs, cold starts or Hugging Face folders, with commas"
    )
    temperature: float = key(1.0, "sampling temperature of these policies", at_least=0)
    endpoint: EndpointSettings = EndpointSettings()
    files: tuple[str, ...] = key(
        (), "JSON lines (also .gz) of trajectories to add (docs/buffer.md has the formats)"
    )
    file_records: int = key(
        0, "most records to read of each file, the first ones; 0 = all", at_least=0
    )
    malformed: str = key("skip", "what to do with their malformed lines", choices=MALFORMED)
    split: str = key(
        "expert",
        "whose questions to sample",
        choices={
            "expert": "the task's set for it; of data sets, the training questions",
            "train": "the training questions",
        },
    )
    questions: int = key(100_000, "most questions to sample", at_least=1)
    samples: int = key(16, "N, trajectories of a question", paper="sec. 4.1.1", at_least=1)
    keep: int = key(5, "K, best trajectories kept of a question", paper="sec. 4.1.1", at_least=1)
    least_reward: float = key(
        float("-inf"), "trajectories of less reward are left out before the best are kept"
    )
    expert_error: float = fraction(0.1, "chance of a wrong decision of the expert", paper="fig. 5")
    include_answers: bool = key(True, "keep the final answers as step traces too")

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents to sample, in their order."""
        return names(self.agent)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The policies of the agent 'checkpoint'."""
        return names(self.checkpoint)
