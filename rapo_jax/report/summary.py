"""The comparison of variants as a table for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rapo_jax.report.compare import Summary, group_runs, summarise
from rapo_jax.report.page import interval, percent
from rapo_jax.report.runs import load_run

COLUMNS = (
    "variant", "seeds", "before", "after (mean ± std)", "hidden (mean ± std)",
    "difference to {baseline} [90 % interval]", "hidden difference", "at equal CPU", "CPU-seconds",
)  # fmt: skip


def write_summary(workdirs: Sequence[Path], folder: Path, *, baseline: str) -> str:
    """Writes summary.md and summary.json about the runs into `folder`; returns the table."""
    summaries = summarise(group_runs([load_run(workdir) for workdir in workdirs]), baseline)
    table = markdown(summaries, baseline)
    (folder / "summary.md").write_text(table, encoding="utf-8")
    document = {"baseline": baseline, "variants": [_plain(each) for each in summaries]}
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    return table


def markdown(summaries: Sequence[Summary], baseline: str) -> str:
    """The table in Markdown: accuracies in percent, differences in percentage points."""
    head = [column.format(baseline=baseline) for column in COLUMNS]
    rows = [_row(each, baseline) for each in summaries]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _row(each: Summary, baseline: str) -> list[str]:
    base = each.label == baseline
    return [
        each.label.replace("|", "\\|").replace("\n", " "),
        str(len(each.seeds)),
        percent(each.accuracy_before),
        _spread(each.accuracy, each.accuracy_std),
        _spread(each.hidden, each.hidden_std),
        "baseline" if base else interval(each.difference),
        "" if base else interval(each.hidden_difference),
        percent(each.equal_cpu),
        "–" if each.cpu_seconds is None else f"{each.cpu_seconds:.0f}",
    ]


def _spread(mean: float | None, std: float | None) -> str:
    return percent(mean) + ("" if std is None else f" ± {100 * std:.1f}")


def _plain(each: Summary) -> dict[str, object]:
    """The fields of a summary as JSON; the interval of a single pair is null."""
    fields = dataclasses.asdict(each)
    for name in ("difference", "hidden_difference"):
        if fields[name] is not None:
            fields[name] = [None if math.isnan(x) else x for x in fields[name]]
    return fields
