"""Question sets to train on: the 10k of Tool-Star and ARPO, ASearcher, WebDancer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapo_jax.io.jsonl import text_of, texts_of
from rapo_jax.tasks.published.published import Published, Record, Taken, take_fields

ANSWER_SPLIT = "<|answer_split|>"
"""Between the gold answers of a question, in the files of ARPO."""
_ESCAPES = str.maketrans({"\a": "\\a", "\b": "\\b", "\v": "\\v", "\f": "\\f"})


def repaired(text: str) -> str:
    r"""A text whose LaTeX went through an unescaped string: a backspace was the `\b` of `\boxed`.

    The same is done for other control characters that no question holds on purpose, such as `\f` of
    `\frac`. Tabs and line ends may be intended and are kept.
    """
    return text.translate(_ESCAPES)


def _toolstar(record: Record) -> Taken:
    """A row in the trainer's layout: chat messages, gold answers, and `ability` maths or QA."""
    question = _question(record)
    model = record.get("reward_model")
    if not isinstance(model, Mapping):
        raise ValueError("reward_model is missing or no struct")
    gold = texts_of(model, "ground_truth")
    answers = [repaired(a).strip() for text in gold for a in text.split(ANSWER_SPLIT) if a.strip()]
    if not answers:
        raise ValueError("ground_truth is blank")
    ability = text_of(record, "ability")
    metric = "math" if ability.startswith("math") else "f1"
    return Taken(repaired(question), answers, ability, metric=metric)


def _question(record: Record) -> str:
    """The question only: the system prompt of the file belongs to another trainer."""
    extra = record.get("extra_info")
    if isinstance(extra, Mapping) and extra.get("question"):
        return text_of(extra, "question")
    prompt = record.get("prompt")
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        for message in reversed(prompt):
            if isinstance(message, Mapping) and message.get("role") == "user":
                return text_of(message, "content")
    raise ValueError("neither extra_info.question nor a user's message in prompt")


def _asearcher(record: Record) -> Taken:
    """`aug_answer` holds other names of the answer; `source` says how a question was made."""
    answers = texts_of(record, "answer")
    if record.get("aug_answer"):
        answers += texts_of(record, "aug_answer")
    source = str(record.get("source") or "")
    return Taken(text_of(record, "question"), [answer.strip() for answer in answers], source)


SETS = {
    "toolstar": Published(
        offered="huggingface.co/datasets/dongguanting/ARPO-RL-Reasoning-10K",
        files={"train": [("train_10k.parquet",)], "test": [("test.parquet",)]},
        take=_toolstar,
    ),
    "asearcher": Published(
        offered="huggingface.co/datasets/inclusionAI/ASearcher-train-data",
        files={"base": [("ASearcher-Base-35k.jsonl",)], "lrm": [("ASearcher-LRM-35k.jsonl",)]},
        take=_asearcher,
        rows={"base": 35583, "lrm": 35054},
    ),
    "webdancer": Published(
        offered="github.com/Alibaba-NLP/WebAgent (folder WebDancer/datasets)",
        files={"train": [("sample_qa.jsonl",)]},
        take=take_fields(),
        rows={"train": 200},
    ),
}
