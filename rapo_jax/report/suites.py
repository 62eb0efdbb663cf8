"""The suites of runs, as their result.json tells them, in one table beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapo_jax.report.runs import Run, as_number
from rapo_jax.suites.paper import reported
from rapo_jax.suites.scores import FAILURES, RIGHT
from rapo_jax.suites.table import average, percent

KINDS = (RIGHT, *FAILURES)
DASH = "–"


@dataclass(frozen=True)
class SuiteRow:
    """A run's suite as texts; `kinds` are counts of samples in the order of KINDS."""

    run: str
    suite: str
    metric: str
    scoring: str
    questions: str
    score: str
    pass_1: str
    judge: str
    calls: str
    tokens: str
    kinds: tuple[str, ...]
    grpo: str
    rapo: str


def suite_rows(runs: Sequence[Run]) -> list[SuiteRow]:
    """One row for each run and suite; what a file does not say is a dash."""
    rows = []
    for run in runs:
        suites = run.result.get("suites")
        found = {
            str(name): x
            for name, x in (suites.items() if isinstance(suites, Mapping) else ())
            if isinstance(x, Mapping)
        }
        rows += [_row(run.workdir.name, name, x) for name, x in found.items()]
        numbers = {name: as_number(x.get("score")) for name, x in found.items()}
        scored = {name: {"score": score} for name, score in numbers.items() if score is not None}
        if (mean := average(scored)) is not None:
            first = next(iter(found.values()))
            rows.append(_row(run.workdir.name, "average", {**_shared(first), "score": mean}))
    return rows


def _shared(x: Mapping[str, Any]) -> dict[str, Any]:
    return {key: x.get(key) for key in ("scoring", "backbone")}


def _row(run: str, name: str, x: Mapping[str, Any]) -> SuiteRow:
    scores = x.get("scores")
    kinds = x.get("kinds")
    paper = reported(str(x.get("backbone")), name)
    return SuiteRow(
        run=run,
        suite=name,
        metric=_text(x.get("metric")),
        scoring=_text(x.get("scoring")),
        questions=_number(x.get("questions"), 0),
        score=percent(as_number(x.get("score")), _interval(x.get("interval"))),
        pass_1=percent(as_number(x.get("pass@1")), _interval(x.get("pass@1_interval"))),
        judge=percent(as_number(scores.get("judge") if isinstance(scores, Mapping) else None)),
        calls=_number(x.get("calls"), 1),
        tokens=_number(x.get("tokens"), 0),
        kinds=tuple(
            _number(kinds.get(kind) if isinstance(kinds, Mapping) else None, 0) for kind in KINDS
        ),
        grpo=f"{paper.grpo:.1f}" if paper else DASH,
        rapo=f"{paper.rapo:.1f}" if paper else DASH,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else DASH


def _number(value: Any, digits: int) -> str:
    number = as_number(value)
    return DASH if number is None else f"{number:.{digits}f}"


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = map(as_number, value)
    return None if low is None or high is None else (low, high)
