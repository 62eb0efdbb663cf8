"""The agents and files that retrieved step traces came from (metrics `buffer/origin/NAME`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rapo_jax.report import charts
from rapo_jax.report.curves import Chart
from rapo_jax.report.runs import RunFiles, series

PREFIX = "buffer/origin/"


class OriginRow(NamedTuple):
    """A variant: all its hits, and the share of each origin, None for a variant without hits."""

    label: str
    hits: int
    shares: list[float | None]


class OriginTable(NamedTuple):
    names: list[str]
    rows: list[OriginRow]
    chart: Chart


def origin_table(groups: Mapping[str, Sequence[RunFiles]]) -> OriginTable | None:
    """Hits by variant and origin, summed over steps and runs; None without a buffer."""
    by_variant = {label: hits for label, runs in groups.items() if (hits := _hits(runs))}
    names = sorted({name for hits in by_variant.values() for name in hits})
    if not names:
        return None
    rows = []
    for label, hits in by_variant.items():
        total = sum(hits.values())
        shares = [hits[name] / total if total else None for name in names]
        rows.append(OriginRow(label, total, shares))
    parts = [[row.shares[i] or 0.0 for row in rows] for i in range(len(names))]
    bars = charts.bar_chart(list(by_variant), parts, xlabel="share of hits")
    return OriginTable(names, rows, Chart("Hits by origin", bars))


def _hits(runs: Sequence[RunFiles]) -> Counter[str]:
    hits: Counter[str] = Counter()
    for run in runs:
        keys = {key for row in run.metrics.get("rl", []) for key in row if key.startswith(PREFIX)}
        for key in keys:
            hits[key.removeprefix(PREFIX)] += round(series(run, key)[1].sum())
    return hits
