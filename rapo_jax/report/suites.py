"""The suites of runs, from their result.json, in one table with the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapo_jax.io.jsonl import JsonObject
from rapo_jax.report.runs import RunFiles
from rapo_jax.suites.paper import AVERAGED
from rapo_jax.suites.scores import FAILURES, RIGHT
from rapo_jax.suites.table import average, cells

COLUMNS = {
    "Suite": "suite", "Run": "run", "Questions": "questions", "Metric": "metric",
    "Scoring": "scoring", "Score": "score", "Pass@1": "pass@1", "Judge": "judge", "Paper": "paper",
    "Paper: best other": "paper's best other", "Calls": "calls", "Tokens": "tokens",
    **{kind: kind for kind in (RIGHT, *FAILURES)},
}  # fmt: skip
"""Heading -> column of `cells`; the last ones count samples by kind."""


def suite_rows(runs: Sequence[RunFiles]) -> list[dict[str, str]]:
    """One row for each run and suite: heading -> text, a dash for what a file does not hold."""
    rows: list[dict[str, str]] = []
    for run in runs:
        found = run.result.get("suites")
        pairs = found.items() if isinstance(found, Mapping) else ()
        suites: dict[str, JsonObject] = {name: x for name, x in pairs if isinstance(x, Mapping)}
        rows += [_row(run, name, x) for name, x in suites.items()]
        if (mean := average(suites)) is not None:
            first = suites[AVERAGED[0]]
            shared = {key: first.get(key) for key in ("scoring", "backbone", "method")}
            rows.append(_row(run, "average", {**shared, "score": mean}))
    return rows


def _row(run: RunFiles, name: str, x: JsonObject) -> dict[str, str]:
    row = cells(name, x) | {"run": run.workdir.name}
    return {heading: row[column] for heading, column in COLUMNS.items()}
