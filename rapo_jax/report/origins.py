"""Which agent or file the retrieved step traces came from: `buffer/origin/NAME` of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rapo_jax.report import charts
from rapo_jax.report.curves import Chart
from rapo_jax.report.runs import Run, series

PREFIX = "buffer/origin/"


class OriginRow(NamedTuple):
    """A variant: all its hits, and the share of each origin, None where it had no hit."""

    label: str
    hits: int
    shares: list[float | None]


class OriginTable(NamedTuple):
    names: list[str]
    rows: list[OriginRow]
    chart: Chart


def origin_table(groups: Mapping[str, Sequence[Run]]) -> OriginTable | None:
    """Hits by variant and origin, summed over steps and runs; None where no run tells of any."""
    found = {label: _hits(runs) for label, runs in groups.items()}
    found = {label: hits for label, hits in found.items() if hits}
    names = sorted({name for hits in found.values() for name in hits})
    if not names:
        return None
    rows = []
    for label, hits in found.items():
        total = sum(hits.values())
        shares = [hits.get(name, 0.0) / total if total else None for name in names]
        rows.append(OriginRow(label, round(total), shares))
    parts = [[row.shares[i] or 0.0 for row in rows] for i in range(len(names))]
    bars = charts.bar_chart(list(found), parts, xlabel="share of hits")
    return OriginTable(names, rows, Chart("Hits by origin", bars))


def _hits(runs: Sequence[Run]) -> dict[str, float]:
    hits: dict[str, float] = {}
    for run in runs:
        keys = {key for row in run.metrics.get("rl", []) for key in row if key.startswith(PREFIX)}
        for key in keys:
            name = key.removeprefix(PREFIX)
            hits[name] = hits.get(name, 0.0) + float(series(run, key)[1].sum())
    return hits
