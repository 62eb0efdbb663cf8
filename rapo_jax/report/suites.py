"""The suites of runs, from their result.json, in one table with the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapo_jax.io.jsonl import JsonObject
from rapo_jax.report.runs import Run, as_number
from rapo_jax.suites.paper import reported
from rapo_jax.suites.scores import FAILURES, RIGHT
from rapo_jax.suites.table import DASH, average, judge_percent, paper_cells, percent

Row = dict[str, str]
"""A suite of a run: column -> text; the last columns count samples by kind."""


def suite_rows(runs: Sequence[Run]) -> list[Row]:
    """One row for each run and suite; a dash for what a file does not hold."""
    rows: list[Row] = []
    for run in runs:
        suites = {
            name: x for name, x in _object(run.result, "suites").items() if isinstance(x, Mapping)
        }
        rows += [_row(run.workdir.name, name, x) for name, x in suites.items()]
        numbers = {name: as_number(x.get("score")) for name, x in suites.items()}
        scored = {name: {"score": score} for name, score in numbers.items() if score is not None}
        if (mean := average(scored)) is not None:
            first = next(iter(suites.values()))
            shared = {key: first.get(key) for key in ("scoring", "backbone", "method")}
            rows.append(_row(run.workdir.name, "average", {**shared, "score": mean}))
    return rows


def _object(x: JsonObject, key: str) -> JsonObject:
    value = x.get(key)
    return value if isinstance(value, Mapping) else {}


def _row(run: str, name: str, x: JsonObject) -> Row:
    kinds = _object(x, "kinds")
    paper = reported(str(x.get("backbone")), name, method=str(x.get("method")))
    same, best = paper_cells(paper)
    return {
        "Suite": name,
        "Run": run,
        "Questions": _number(x.get("questions"), 0),
        "Metric": _text(x.get("metric")),
        "Scoring": _text(x.get("scoring")),
        "Score": percent(as_number(x.get("score")), _interval(x.get("interval"))),
        "Pass@1": percent(as_number(x.get("pass@1")), _interval(x.get("pass@1_interval"))),
        "Judge": _judge(x),
        "Paper": same,
        "Paper: best other": best,
        "Calls": _number(x.get("calls"), 1),
        "Tokens": _number(x.get("tokens"), 0),
        **{kind: _number(kinds.get(kind), 0) for kind in (RIGHT, *FAILURES)},
    }


def _judge(x: JsonObject) -> str:
    score = as_number(_object(x, "scores").get("judge"))
    questions, samples, unjudged = (
        as_number(x.get(k)) for k in ("questions", "samples", "unjudged")
    )
    if questions is None or samples is None or unjudged is None or (score, unjudged) == (None, 0):
        return percent(score)
    return judge_percent(score, samples=questions * samples, unjudged=unjudged)


def _text(value: object) -> str:
    return value if isinstance(value, str) else DASH


def _number(value: object, digits: int) -> str:
    number = as_number(value)
    return DASH if number is None else f"{number:.{digits}f}"


def _interval(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = map(as_number, value)
    return None if low is None or high is None else (low, high)
