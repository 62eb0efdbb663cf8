"""What a suite's predictions come to: one mapping of numbers, as it stands in result.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rapo_jax.scoring.intervals import bootstrap, wilson
from rapo_jax.scoring.passes import pass_rates
from rapo_jax.suites.scores import FAILURES, RIGHT

SEED = 0
"""Of the bootstrap: the same predictions give the same interval."""


def summarise(rows: Sequence[Mapping[str, Any]], *, samples: int) -> dict[str, Any]:
    """Numbers of a suite's scored rows, `samples` of each question in a row.

    `score` is the mean of the suite's own metric and `pass@1` the share of samples that are right,
    with 95 % intervals over questions: Wilson's for pass@1 and maths of single answers, the
    bootstrap's for the rest (None where it has nothing to draw from). With several samples there
    are avg@k and pass@k too. `calls`, `failed_calls` and `tokens` are means of a sample; `kinds`
    counts samples.
    """
    if not rows or len(rows) % samples:
        raise ValueError(f"samples={samples}: {len(rows)} rows are no whole number of questions")
    score_QK = np.array([row["score"] for row in rows], float).reshape(-1, samples)
    kinds = Counter(row["kind"] for row in rows)
    rates = pass_rates(score_QK.tolist(), k=samples)
    right_Q = (score_QK >= 1).mean(axis=1)
    single = samples == 1
    interval = wilson(kinds[RIGHT], len(rows)) if single else bootstrap(right_Q.tolist(), seed=SEED)
    maths = {row["metric"] for row in rows} == {"math"}
    mean_Q = score_QK.mean(axis=1)
    groups = list(dict.fromkeys(row["group"] for row in rows))
    return {
        "questions": len(score_QK),
        "samples": samples,
        "score": float(score_QK.mean()),
        "interval": interval if single and maths else bootstrap(mean_Q.tolist(), seed=SEED),
        "pass@1_interval": interval,
        **({"pass@1": rates["pass@1"]} if single else rates),
        "scores": _scores(rows),
        "unjudged": sum(row["scores"].get("judge", 0) is None for row in rows),
        "calls": _mean(sum(row["calls"].values()) for row in rows),
        "calls_by_tool": _by_tool(rows, "calls"),
        "failed_calls": _mean(sum(row["failed_calls"].values()) for row in rows),
        "tokens": _mean(row["tokens"] for row in rows),
        "kinds": {kind: kinds[kind] for kind in (RIGHT, *FAILURES)},
        "groups": {} if len(groups) < 2 else {group: _group(rows, group) for group in groups},
    }


def headline(name: str, found: Mapping[str, Any]) -> str:
    """One line for people."""
    low_high = found["interval"]
    interval = "" if low_high is None else f" [{100 * low_high[0]:.1f}, {100 * low_high[1]:.1f}]"
    failed = ", ".join(f"{kind} {n}" for kind, n in found["kinds"].items() if n)
    return (
        f"{name}: {found['metric']} {100 * found['score']:.1f}{interval}, "
        f"{found['questions']} questions, {found['calls']:.1f} calls and {found['tokens']:.0f} "
        f"tokens each; {failed}"
    )


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric over the rows that have it; a judge may have failed on some."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    values = {name: [row["scores"].get(name) for row in rows] for name in names}
    return {
        name: _mean(kept)
        for name, found in values.items()
        if (kept := [x for x in found if x is not None])
    }


def _by_tool(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row[key])
    return {tool: total[tool] / len(rows) for tool in sorted(total)}


def _group(rows: Sequence[Mapping[str, Any]], group: str) -> dict[str, float]:
    scores = [row["score"] for row in rows if row["group"] == group]
    ids = {row["id"] for row in rows if row["group"] == group}
    return {"questions": len(ids), "score": _mean(scores)}
