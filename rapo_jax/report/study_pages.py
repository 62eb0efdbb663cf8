"""The page of a study: its table with intervals, its picture, and the paper's statements."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rapo_jax.report.runs import Run
from rapo_jax.report.studies import MEASURES, Measure, Study, Values, difference, verdict
from rapo_jax.suites.table import markdown_table

DASH = "–"


def write_page(
    name: str, study: Study, values: Values, runs: Sequence[Run], folder: Path, *, command: str
) -> str:
    """Writes NAME.md and NAME.json into `folder`, beside the picture NAME.svg; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    commits = sorted({str(run.config.get("commit", "unknown"))[:7] for run in runs})
    parts = [
        f"# {study.title} ({study.source})",
        f"`{command}`",
        f"Commit of the runs: {', '.join(commits)}. Mean ± standard deviation over seeds; "
        "differences are paired by\nseed, with 95 % t intervals; *detectable* is the smallest true "
        "difference that so many seeds show with\npower 0.8.",
        table(study, values),
    ]
    if (folder / f"{name}.svg").exists():
        parts.append(f"![{study.title}]({name}.svg)")
    if study.claims:
        parts += ["## Statements of the paper", claims_table(study, values)]
    page = "\n\n".join(parts) + "\n"
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    document = {"study": name, "command": command, "commits": commits, "values": values}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return page


def table(study: Study, values: Values) -> str:
    """A row for each variant: every measure, and the first one's difference to the baseline."""
    measures = [MEASURES[name] for name in study.measures]
    first = measures[0]
    head = [
        "variant", "seeds", *(measure.name for measure in measures),
        f"to {study.baseline} [95 %]", "detectable",
    ]  # fmt: skip
    rows = []
    for label, of in values.items():
        seeds = max((len(of.get(name, {})) for name in study.measures), default=0)
        cells = [spread(of.get(name, {}), MEASURES[name]) for name in study.measures]
        found = difference(values, study.measures[0], label, study.baseline)
        ours = [interval(found.interval, first), number(found.detectable, first)]
        rows.append([label, str(seeds), *cells, *(ours if label != study.baseline else ["", ""])])
    return markdown_table(head, rows)


def claims_table(study: Study, values: Values) -> str:
    """A row for each statement: its measure, the difference with its interval, the verdict."""
    rows = []
    for claim in study.claims:
        measure = MEASURES[claim.measure]
        found = difference(values, claim.measure, claim.more, claim.less)
        pair = f"{claim.more} − {claim.less}"
        rows.append(
            [claim.text, measure.name, pair, interval(found.interval, measure), verdict(found)]
        )
    return markdown_table(
        ["the paper says", "measure", "difference", "here [95 %]", "verdict"], rows
    )


def spread(of: Mapping[int, float], measure: Measure) -> str:
    """Mean ± standard deviation."""
    if not of:
        return DASH
    values = np.array(list(of.values()))
    mean = number(float(values.mean()), measure)
    return mean + (f" ± {number(float(values.std(ddof=1)), measure)}" if len(values) > 1 else "")


def number(value: float, measure: Measure, *, signed: bool = False) -> str:
    """A value in the measure's unit."""
    if math.isnan(value):
        return DASH
    text = f"{measure.scale * value:{'+' if signed else ''}.{measure.digits}f}"
    return text.replace("-", "−")


def interval(value: tuple[float, float, float], measure: Measure) -> str:
    """Mean and interval; the mean alone for one pair."""
    mean, low, high = (number(x, measure, signed=True) for x in value)
    return mean if DASH in (low, mean) else f"{mean} [{low}, {high}]"
