"""Scores of predictions under one of the two rules, and why one that is not right is not.

`strict` reads an answer as the outcome reward does: a response of bad format has none. `official`
takes what the papers' evaluation script takes: the last box, wherever it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rapo_jax.config import JudgeSettings
from rapo_jax.scoring.answers import last_boxed, official_answer, score_answer
from rapo_jax.scoring.judge import Answered, ChatJudge, Judgement
from rapo_jax.scoring.maths import math_counts, math_equal
from rapo_jax.scoring.maths_official import official_math_equal
from rapo_jax.tasks.reward import boxed_answer, failure_kind

RIGHT = "right"
FAILURES = (
    "partly right",
    "wrong",
    "tool errors",
    "bad format",
    "no answer",
    "out of tokens",
    "out of calls",
    "prompt too long",
)
"""Every prediction is RIGHT (a score of 1) or of one of these kinds. 'tool errors' are wrong
answers after a call that failed; 'no answer' boxes nothing anywhere."""
ENDINGS = {
    "OUT_OF_TOKENS": "out of tokens",
    "OUT_OF_STEPS": "out of calls",
    "PROMPT_TOO_LONG": "prompt too long",
}

JUDGE_CACHE = "judge.sqlite"

Judge = Callable[[Sequence[Answered]], list[Judgement]]


def open_judge(judge: JudgeSettings, *, rule: str, folder: Path) -> ChatJudge:
    """The judge of evaluate.judge; without a cache of its own it keeps replies in `folder`."""
    return ChatJudge(
        judge.url,
        model=judge.model,
        key_variable=judge.key_variable,
        cache=judge.cache or folder / JUDGE_CACHE,
        rule=rule,
        deadline_s=judge.deadline_s,
        concurrency=judge.concurrency,
    )


def score_all(
    rows: Sequence[Mapping[str, Any]],
    *,
    rule: str,
    user_tools: tuple[str, ...],
    judge: JudgeSettings,
    folder: Path,
) -> list[dict[str, Any]]:
    """`score_predictions`, with the judge if there is one; says what was left without a verdict."""
    before = math_counts()
    opened = open_judge(judge, rule=rule, folder=folder) if judge.url else None
    try:
        found = score_predictions(rows, rule=rule, user_tools=user_tools, judge=opened)
    finally:
        if opened is not None:
            opened.close()
    unfinished = {name: math_counts()[name] - before[name] for name in ("timeout", "crashed")}
    if any(unfinished.values()):
        told = ", ".join(f"{n} {name}" for name, n in unfinished.items() if n)
        print(f"[suites] maths comparisons without a verdict count as wrong: {told}", flush=True)
    if opened is not None:
        told = ", ".join(f"{n} {verdict}" for verdict, n in opened.counts.items() if n)
        print(f"[suites] judge {judge.model}: {told}; {opened.calls} calls", flush=True)
    return found


def score_predictions(
    rows: Sequence[Mapping[str, Any]],
    *,
    rule: str,
    user_tools: tuple[str, ...],
    judge: Judge | None,
) -> list[dict[str, Any]]:
    """The rows with `prediction`, `scores` by metric, `score` (of the row's own metric) and `kind`.

    `own` are the tags of own tools. A judge that gave no verdict is a score of None.
    """
    found = [_scored(row, rule=rule, user_tools=user_tools) for row in rows]
    if judge is not None:
        asked = [Answered(row["question"], row["gold"], row["prediction"]) for row in found]
        for row, judgement in zip(found, judge(asked), strict=True):
            verdicts = {"correct": 1.0, "incorrect": 0.0}
            row["scores"]["judge"] = verdicts.get(judgement.verdict)
    return found


def _scored(row: Mapping[str, Any], *, rule: str, user_tools: tuple[str, ...]) -> dict[str, Any]:
    text, gold, metric = row["text"], row["gold"], row["metric"]
    bad_format = failure_kind(text, user_tools)
    if rule == "official":
        answer = official_answer(text) if text.strip() else ""
    else:
        answer = boxed_answer(text, user_tools) or ""
    scores: dict[str, float | None] = dict(score_answer(answer, gold, rule=rule)._asdict())
    if metric == "math":
        scores["math"] = _math(answer, tuple(gold), rule)
    score = scores[metric]
    assert score is not None
    facts = {key: x for key, x in row.items() if key not in ("prediction", "scores", "score")}
    return {
        **{key: x for key, x in facts.items() if key not in ("boxed", "format", "kind", "text")},
        "prediction": answer,
        "boxed": last_boxed(text),
        "format": bad_format,
        "scores": scores,
        "score": score,
        "kind": kind_of(
            score,
            ending=row["ending"],
            boxes=last_boxed(text) is not None,
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
    """RIGHT or the one of FAILURES that says most about why it is not."""
    if score >= 1:
        return RIGHT
    if score > 0:
        return "partly right"
    if ending in ENDINGS:
        return ENDINGS[ending]
    if bad_format:
        return "bad format" if boxes else "no answer"
    return "tool errors" if failed_calls else "wrong"
