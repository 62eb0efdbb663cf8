"""Scores of predictions under one of two rules, and the kind of failure of each wrong one.

`strict` reads an answer as the outcome reward does: a response of bad format has none. `official`
takes the last box of the response, as the papers' evaluation script does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from rapo_jax.config import JudgeSettings
from rapo_jax.scoring.answers import last_boxed, official_answer, score_answer
from rapo_jax.scoring.judge import Answered, ChatJudge, Judgement
from rapo_jax.scoring.maths import math_counts, math_equal
from rapo_jax.scoring.maths_official import official_math_equal
from rapo_jax.suites.predictions import Prediction
from rapo_jax.tasks.reward import answer_of, failure_kind
from rapo_jax.text.protocols import AnswerRule

RIGHT = "right"
FAILURES = (
    "partly right", "wrong", "tool errors", "bad format",
    "no answer", "out of tokens", "out of calls", "prompt too long",
)  # fmt: skip
"""Every prediction is RIGHT (a score of 1) or of one of these kinds. 'tool errors' are wrong
answers after a call that failed; 'no answer' boxes nothing anywhere."""
ENDINGS = {
    "OUT_OF_TOKENS": "out of tokens",
    "OUT_OF_CALLS": "out of calls",
    "PROMPT_TOO_LONG": "prompt too long",
}

JUDGE_CACHE = "judge.sqlite"

Judge = Callable[[Sequence[Answered]], list[Judgement]]


class ScoredPrediction(Prediction):
    """A prediction with the scores of its answer."""

    prediction: str
    boxed: str | None
    format: str
    """The reason for a bad format, '' for a good one."""
    scores: dict[str, float | None]
    """By metric; None without a verdict of the judge."""
    score: float
    """By the metric of the question's set."""
    kind: str
    """RIGHT or one of FAILURES."""


def open_judge(judge: JudgeSettings, *, rule: str, folder: Path) -> ChatJudge:
    """The judge of evaluate.judge; without a configured cache it keeps replies in `folder`."""
    return ChatJudge(judge, cache=judge.cache or folder / JUDGE_CACHE, rule=rule)


def score_all(
    rows: Sequence[Prediction],
    *,
    rule: str,
    user_tools: tuple[str, ...],
    judge: JudgeSettings,
    folder: Path,
    answers: AnswerRule = "tagged",
) -> list[ScoredPrediction]:
    """`score_predictions`, with the judge if there is one; prints how many have no verdict."""
    before = math_counts()
    opened = open_judge(judge, rule=rule, folder=folder) if judge.url else None
    try:
        scored = score_predictions(
            rows, rule=rule, user_tools=user_tools, judge=opened, answers=answers
        )
    finally:
        if opened is not None:
            opened.close()
    unfinished = {name: math_counts()[name] - before[name] for name in ("timeout", "crashed")}
    if any(unfinished.values()):
        counts = ", ".join(f"{n} {name}" for name, n in unfinished.items() if n)
        print(f"[suites] maths comparisons without a verdict count as wrong: {counts}", flush=True)
    if opened is not None:
        counts = ", ".join(f"{n} {verdict}" for verdict, n in opened.counts.items() if n)
        unkept = f", {opened.unkept} replies not cached" if opened.unkept else ""
        print(f"[suites] judge {judge.model}: {counts}; {opened.calls} calls{unkept}", flush=True)
    return scored


def score_predictions(
    rows: Sequence[Prediction],
    *,
    rule: str,
    user_tools: tuple[str, ...],
    judge: Judge | None,
    answers: AnswerRule = "tagged",
) -> list[ScoredPrediction]:
    """The rows with their scores; rows that were scored before are scored again."""
    scored = [_scored(row, rule, user_tools, answers) for row in rows]
    if judge is not None:
        asked = [Answered(row["question"], row["gold"], row["prediction"]) for row in scored]
        for row, judgement in zip(scored, judge(asked), strict=True):
            verdicts = {"correct": 1.0, "incorrect": 0.0}
            row["scores"]["judge"] = verdicts.get(judgement.verdict)
    return scored


def _scored(
    row: Prediction, rule: str, user_tools: tuple[str, ...], answers: AnswerRule
) -> ScoredPrediction:
    text, gold, metric = row["text"], row["gold"], row["metric"]
    bad_format = failure_kind(text, user_tools, answers)
    answered = answer_of(text, user_tools, answers)
    boxes = answered is not None or (answers == "tagged" and last_boxed(text) is not None)
    if rule == "official" and answers in ("tagged", "boxed"):
        answer = official_answer(text) if text.strip() else ""
    else:
        answer = answered or ""
    scores: dict[str, float | None] = dict(score_answer(answer, gold, rule=rule)._asdict())
    if metric == "math":
        scores["math"] = _math(answer, tuple(gold), rule)
    score = scores[metric]
    assert score is not None
    return {
        "id": row["id"],
        "sample": row["sample"],
        "question": row["question"],
        "gold": gold,
        "group": row["group"],
        "metric": metric,
        "ending": row["ending"],
        "calls": row["calls"],
        "failed_calls": row["failed_calls"],
        "tokens": row["tokens"],
        "prediction": answer,
        "boxed": last_boxed(text),
        "format": bad_format,
        "scores": scores,
        "score": score,
        "kind": kind_of(
            score,
            ending=row["ending"],
            boxes=boxes,
            bad_format=bool(bad_format),
            failed_calls=sum(row["failed_calls"].values()),
        ),
        "text": text,
    }


@functools.lru_cache(maxsize=65_536)
def _math(answer: str, gold: tuple[str, ...], rule: str) -> float:
    if rule == "official":
        return float(official_math_equal(answer, gold[-1]))
    return float(any(math_equal(answer, each) for each in gold))


def kind_of(score: float, *, ending: str, boxes: bool, bad_format: bool, failed_calls: int) -> str:
    """RIGHT or one of FAILURES, the most specific that applies."""
    if score >= 1:
        return RIGHT
    if score > 0:
        return "partly right"
    if ending in ENDINGS:
        return ENDINGS[ending]
    if bad_format:
        return "bad format" if boxes else "no answer"
    return "tool errors" if failed_calls else "wrong"
