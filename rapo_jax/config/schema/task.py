"""Keys of the questions: the task, its prompt and its tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rapo_jax.config.keys import key

MALFORMED = {"skip": "leave the line out, and report how many there are", "fail": "stop the run"}


@dataclasses.dataclass(frozen=True)
class ChainsSettings:
    """The synthetic world of task.name='chains' (docs/tiny.md).

    The entities that start neither training nor held-out questions start those of the buffer.
    """

    seed: int = key(1, "seed of the names, the facts and the meaning of the words", at_least=0)
    n_entities: int = key(120, "entities of the world")
    n_train: int = key(70, "entities that start training questions")
    n_eval: int = key(25, "entities that start held-out questions")
    two_hop: int = key(6, "words that mean two searches; the four words of one search always exist")
    number: int = key(4, "words that mean at most one search, then the age and a calculation")
    hidden: int = key(
        12,
        "words that mean four searches; demonstrated with mostly wrong decisions in the cold start",
    )
    hidden_number: int = key(
        4,
        "words that mean two searches, then the age and a calculation; demonstrated as hidden ones",
    )


@dataclasses.dataclass(frozen=True)
class PairsSettings:
    """The synthetic world of task.name='pairs' (docs/pairs.md)."""

    seed: int = key(1, "seed of the names, the facts and the meaning of the words", at_least=0)
    n_entities: int = key(150, "entities of the world")
    n_train: int = key(90, "entities that start training questions")
    n_eval: int = key(20, "entities that start held-out questions")
    n_expert: int = key(30, "entities that start questions of the buffer")
    known: int = key(8, "words on which the cold start and the teacher are right")
    mastered: int = key(6, "outer words on which the teacher is right and the cold start wrong")
    blind: int = key(4, "words on which the teacher is wrong and the cold start explores")
    number: int = key(
        2, "known words that end in a number, and as many mastered ones; none is an inner word"
    )
    train_questions: int = key(1000, "training questions of each kind")
    eval_questions: int = key(120, "held-out questions of each kind")
    expert_questions: int = key(240, "questions of the buffer of each kind")


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """The questions of task.name='dataset'.

    `train` and `eval` list files (JSON lines, Parquet or CSV with the columns question and answer
    or answers) or published sets, separated by commas: "gsm8k:train,mine.jsonl[:200]", where
    [:200] takes the first 200 questions.
    """

    train: str = key("", "training questions; the buffer's agents answer them too")
    eval: str = key("", "held-out questions")
    documents: str = key(
        "",
        "JSON lines {id, contents} or {id, title, text}, which tools.search.kind='local' searches",
    )
    manual_dir: str = key("", "folder of the published sets: MANUAL_DIR/gsm8k/train.jsonl")
    malformed: str = key("skip", "what to do with a malformed record", choices=MALFORMED)


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Questions, tools and rewards belong to a task."""

    name: str = key(
        "chains",
        "the task",
        choices={
            "chains": "questions about a synthetic world, for the tiny run",
            "pairs": "compositions of words of a synthetic world; its expert has blind spots",
            "dataset": "questions from files or published sets",
            "module:TASK": "your task (docs/user_code.md)",
        },
    )
    metric: str = key(
        "f1",
        "how a boxed answer is compared with the gold answers",
        paper="sec. 5.1",
        choices={"f1": "token F1", "math": "equivalence: 1/2 equals 0.5"},
    )
    reward: str = key(
        "",
        "your outcome reward as module:function (docs/user_code.md); '' = the paper's",
        paper="sec. 5.1",
    )
    too_long: str = key(
        "skip",
        "what to do with a question whose prompt is longer than rollout.prompt_tokens",
        choices={"skip": "leave it out, and report how many there are", "fail": "stop the run"},
    )
    data_dir: str = key("", "folder of the prepared questions; '' = WORKDIR/data")
    chains: ChainsSettings = ChainsSettings()
    pairs: PairsSettings = PairsSettings()
    dataset: DatasetSettings = DatasetSettings()
    user_arguments: Mapping[str, object] = key(
        {}, "keyword arguments of your task; any keys, which only task.name='module:TASK' reads"
    )


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """What the policy reads before a question."""

    system: str = key("", "system prompt; '' = the task's, or the paper's", paper="sec. 4")
    template_arguments: Mapping[str, object] = key(
        {}, "switches of the chat template, such as enable_thinking (docs/models.md); any keys"
    )


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """The tokenizer of the policy."""

    folder: str = key(
        "",
        "Hugging Face folder of a tokenizer; '' = that of model.folder, or without one a tokenizer "
        "trained on the task's corpus",
    )
    vocab_size: int = key(1024, "most tokens of a tokenizer that is trained here", unit="tokens")
