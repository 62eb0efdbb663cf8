r"""Maths question sets: GSM8K, MATH, MATH500, AIME 2024 and 2025; answers are equivalent or not."""

from __future__ import annotations

from rapo_jax.io.jsonl import text_of
from rapo_jax.scoring.answers import last_boxed
from rapo_jax.tasks.published.published import Published, Record, Taken


def _gsm8k(record: Record) -> Taken:
    """The solution ends in a line '#### 1,234'."""
    _, marked, answer = text_of(record, "answer").rpartition("####")
    if not marked or not answer.strip():
        raise ValueError("answer holds no '####' followed by a number")
    return Taken(text_of(record, "question"), [answer.strip().replace(",", "")])


def _math(record: Record) -> Taken:
    r"""The answer is what the solution boxes last."""
    answer = last_boxed(text_of(record, "solution")) or ""
    if not answer.strip():
        raise ValueError("solution boxes no answer")
    level = text_of(record, "level").removeprefix("Level ")
    return Taken(text_of(record, "problem"), [answer.strip()], level)


def _math500(record: Record) -> Taken:
    name = str(record.get("unique_id") or "")
    level = str(record.get("level") or "")
    return Taken(text_of(record, "problem"), [text_of(record, "answer")], level, name)


def _aime(record: Record) -> Taken:
    """Publishers name the problem differently, and write 33 as 33, '33' or '033'."""
    lower = {name.lower(): value for name, value in record.items()}
    problem = text_of(lower, "problem" if "problem" in lower else "question")
    answer = lower.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    answer = text_of({"answer": answer}, "answer").strip()
    return Taken(problem, [str(int(answer)) if answer.isdecimal() else answer])


SETS = {
    "gsm8k": Published(
        metric="math",
        offered="github.com/openai/grade-school-math (folder grade_school_math/data) or "
        "huggingface.co/datasets/openai/gsm8k",
        files={
            "train": [("train.jsonl",), ("main/train-*.parquet",)],
            "test": [("test.jsonl",), ("main/test-*.parquet",)],
        },
        take=_gsm8k,
        rows={"train": 7473, "test": 1319},
    ),
    "math": Published(
        metric="math",
        offered="github.com/hendrycks/math (MATH.tar, unpacked) or "
        "huggingface.co/datasets/EleutherAI/hendrycks_math",
        files={
            "train": [("train/*/*.json",), ("*/train-*.parquet",)],
            "test": [("test/*/*.json",), ("*/test-*.parquet",)],
        },
        take=_math,
        rows={"train": 7500, "test": 5000},
    ),
    "math500": Published(
        metric="math",
        offered="huggingface.co/datasets/HuggingFaceH4/MATH-500",
        files={"test": [("test.jsonl",)]},
        take=_math500,
        rows={"test": 500},
    ),
    "aime24": Published(
        metric="math",
        offered="huggingface.co/datasets/HuggingFaceH4/aime_2024 or Maxwell-Jia/AIME_2024",
        files={
            "test": [
                ("data/train-*.parquet",),
                ("aime_2024_problems.parquet",),
                ("aime_2024_problems.jsonl",),
            ]
        },
        take=_aime,
        rows={"test": 30},
    ),
    "aime25": Published(
        metric="math",
        offered="huggingface.co/datasets/opencompass/AIME2025 or math-ai/aime25",
        files={"test": [("aime2025-I.jsonl", "aime2025-II.jsonl"), ("test.jsonl",)]},
        take=_aime,
        rows={"test": 30},
    ),
}
