"""The comparison of variants as a table for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rapo_jax.io.tables import markdown_table
from rapo_jax.report.compare import Interval, Summary, group_runs, repeated_seeds, summarise
from rapo_jax.report.runs import load_run

COLUMNS = (
    "Variant", "Seeds", "Before", "After, mean ± std", "Hidden, mean ± std",
    "Difference to {baseline} [90 %]", "[95 %]", "Hidden difference [90 %]",
    "At equal CPU", "At equal sampled tokens",
    "Tokens a step", "Calls a step", "CPU-s a step", "Seconds a step", "CPU-seconds",
)  # fmt: skip


def write_summary(workdirs: Sequence[Path], folder: Path, *, baseline: str) -> str:
    """Writes summary.md and summary.json of the runs into `folder`; returns the text of the former.

    Notes follow the table where seeds are repeated or no variant is the baseline.
    """
    groups = group_runs([load_run(workdir) for workdir in workdirs])
    summaries = summarise(groups, baseline)
    rows = [cells(each, baseline) for each in summaries]
    table = markdown_table(columns(baseline), rows) + "\n"
    notes = repeated_seeds(groups)
    if len(groups) > 1 and baseline not in groups:
        there = ", ".join(map(repr, groups))
        problem = f"No variant is called {baseline!r}, so there are no differences; there are: "
        notes.insert(0, problem + there)
    table += "".join(f"\n{note}.\n" for note in notes)
    (folder / "summary.md").write_text(table, encoding="utf-8")
    document = {"baseline": baseline, "variants": [_plain(each) for each in summaries]}
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    return table


def columns(baseline: str) -> list[str]:
    """The head of the comparison table."""
    return [column.format(baseline=baseline) for column in COLUMNS]


def cells(summary: Summary, baseline: str) -> list[str]:
    """A row of the comparison table: accuracies in percent, differences in percentage points."""
    if summary.label == baseline:
        differences = ["baseline", "", ""]
    else:
        differences = [
            interval(summary.difference),
            bounds(summary.difference_95),
            interval(summary.hidden_difference),
        ]
    return [
        summary.label,
        str(len(summary.seeds)),
        percent(summary.accuracy_before),
        _spread(summary.accuracy, summary.accuracy_std),
        _spread(summary.hidden, summary.hidden_std),
        *differences,
        _with_difference(summary.equal_cpu, summary.equal_cpu_difference),
        _with_difference(summary.equal_tokens, summary.equal_tokens_difference),
        *map(_number, summary.step),
        _number(summary.cpu_seconds),
    ]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of accuracies in percentage points, signed."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:+z.1f}".replace("-", "−")


def interval(value: Interval | None) -> str:
    """Mean and interval in percentage points; the mean alone where one pair has no interval."""
    if value is None:
        return "–"
    return points(value[0]) + ("" if math.isnan(value[1]) else f" {bounds(value)}")


def bounds(value: Interval | None) -> str:
    """The interval alone, in percentage points."""
    if value is None or math.isnan(value[1]):
        return "–"
    return f"[{points(value[1])}, {points(value[2])}]"


def _with_difference(value: float | None, difference: Interval | None) -> str:
    return percent(value) + ("" if difference is None else f", {interval(difference)}")


def _number(value: float | None) -> str:
    """Whole, or with two digits where it is small."""
    return "–" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _spread(mean: float | None, std: float | None) -> str:
    return percent(mean) + ("" if std is None else f" ± {100 * std:.1f}")


def _plain(each: Summary) -> dict[str, object]:
    """The fields of a summary as JSON; the interval of a single pair is null."""
    fields = dataclasses.asdict(each)
    for name, value in fields.items():
        if "difference" in name and value is not None:
            fields[name] = [None if math.isnan(x) else x for x in value]
    return fields | {"step": each.step._asdict()}
