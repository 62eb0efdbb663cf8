"""The numbers of a suite, from its scored predictions; they are written to result.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from rapo_jax.scoring.intervals import bootstrap, wilson
from rapo_jax.scoring.passes import pass_rates
from rapo_jax.suites.scores import FAILURES, RIGHT, ScoredPrediction

SEED = 0
"""Seed of the bootstrap: the same predictions give the same interval."""

Summary: TypeAlias = dict[str, Any]
"""JSON: `summarise` adds the numbers; the stage adds suite, weights, metric, scoring, backbone and
method."""


def summarise(rows: Sequence[ScoredPrediction], *, samples: int) -> Summary:
    """Numbers of a suite's scored rows, with `samples` consecutive rows of each question.

    `score` is the mean of the suite's metric and `pass@1` the share of right samples, with 95 %
    intervals over questions: Wilson's for pass@1 and maths of single answers, the bootstrap's for
    the rest (None for a single question). With several samples there are avg@k and pass@k too.
    `calls`, `failed_calls` and `tokens` are means of a sample; `kinds` counts samples.
    """
    if not rows or len(rows) % samples:
        raise ValueError(f"samples={samples}: {len(rows)} rows are no whole number of questions")
    score_QG = np.array([row["score"] for row in rows], float).reshape(-1, samples)
    kinds = Counter(row["kind"] for row in rows)
    rates = pass_rates(score_QG.tolist(), k=samples)
    right_Q = (score_QG >= 1).mean(axis=1)
    single = samples == 1
    interval = wilson(kinds[RIGHT], len(rows)) if single else bootstrap(right_Q.tolist(), seed=SEED)
    maths = {row["metric"] for row in rows} == {"math"}
    mean_Q = score_QG.mean(axis=1)
    groups = list(dict.fromkeys(row["group"] for row in rows))
    return {
        "questions": len(score_QG),
        "samples": samples,
        "score": float(score_QG.mean()),
        "interval": interval if single and maths else bootstrap(mean_Q.tolist(), seed=SEED),
        "pass@1_interval": interval,
        **({"pass@1": rates["pass@1"]} if single else rates),
        "scores": _scores(rows),
        "unjudged": sum(row["scores"].get("judge", 0) is None for row in rows),
        "calls": _mean(sum(row["calls"].values()) for row in rows),
        "calls_by_tool": _by_tool(rows),
        "failed_calls": _mean(sum(row["failed_calls"].values()) for row in rows),
        "tokens": _mean(row["tokens"] for row in rows),
        "kinds": {kind: kinds[kind] for kind in (RIGHT, *FAILURES)},
        "groups": {} if len(groups) < 2 else {group: _group(rows, group) for group in groups},
    }


def headline(name: str, summary: Summary) -> str:
    """A suite's score in one line for people."""
    low_high = summary["interval"]
    interval = "" if low_high is None else f" [{100 * low_high[0]:.1f}, {100 * low_high[1]:.1f}]"
    failed = ", ".join(f"{kind} {n}" for kind, n in summary["kinds"].items() if n)
    return (
        f"{name}: {summary['metric']} {100 * summary['score']:.1f}{interval}, "
        f"{summary['questions']} questions, {summary['calls']:.1f} calls and "
        f"{summary['tokens']:.0f} tokens each; {failed}"
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _scores(rows: Sequence[ScoredPrediction]) -> dict[str, float]:
    """Mean of each metric over the rows that have it; a judge may have failed on some."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    values = {name: [row["scores"].get(name) for row in rows] for name in names}
    known = {name: [x for x in row if x is not None] for name, row in values.items()}
    return {name: _mean(scores) for name, scores in known.items() if scores}


def _by_tool(rows: Sequence[ScoredPrediction]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row["calls"])
    return {tool: total[tool] / len(rows) for tool in sorted(total)}


def _group(rows: Sequence[ScoredPrediction], group: str) -> dict[str, float]:
    scores = [row["score"] for row in rows if row["group"] == group]
    ids = {row["id"] for row in rows if row["group"] == group}
    return {"questions": len(ids), "score": _mean(scores)}
