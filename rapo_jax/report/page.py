"""Writes report.html: headline, comparison, curves and trajectories on one self-contained page.

Text written by a model is hostile. The template escapes every value, trajectories are embedded as
JSON that cannot close its element and are shown through `textContent`, and the content security
policy of the page lets only the viewer's script run (by its hash) and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rapo_jax.io.jsonl import JsonObject
from rapo_jax.report import charts, curves
from rapo_jax.report.compare import (
    BASELINE,
    Measure,
    Summary,
    by_seed,
    group_runs,
    repeated_seeds,
    seed_groups,
    settings_of,
    summarise,
)
from rapo_jax.report.curves import Groups
from rapo_jax.report.origins import origin_table
from rapo_jax.report.runs import RunFiles, accuracy, accuracy_by_kind, hidden_accuracy, load_run
from rapo_jax.report.suites import suite_rows
from rapo_jax.report.summary import cells, columns, percent, points
from rapo_jax.report.trajectories import choose_trajectories, segments_of

MAX_TRAJECTORIES = 60
TRAJECTORIES = "trajectories"
HERE = Path(__file__).parent


def write_report(workdirs: Sequence[Path], output: Path, *, baseline: str = BASELINE) -> Path:
    """Writes one self-contained HTML page about the runs in `workdirs`; returns its path.

    Runs are grouped by variant (`compare.group_runs`). The page names whatever a workdir lacks.
    Raises OSError if `output` cannot be written.
    """
    folders = dict.fromkeys(Path(workdir).resolve() for workdir in workdirs)
    runs = [load_run(folder) for folder in folders]
    page = render(runs, baseline=baseline)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def render(runs: Sequence[RunFiles], *, baseline: str) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup

    groups = group_runs(runs)
    summaries = summarise(groups, baseline)
    trajectories, trajectory_notes = _trajectories(groups)
    script = (HERE / "viewer.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "svg": Markup}
    return environment.get_template("page.html").render(
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=runs,
        notes=[*(note for run in runs for note in run.notes), *repeated_seeds(groups)],
        summaries=summaries,
        columns=columns(baseline),
        comparison=[cells(each, baseline) for each in summaries],
        baseline=baseline if baseline in groups else None,
        kinds=_kinds(groups),
        suites=suite_rows(runs),
        settings=_differing_settings(groups),
        differences=_difference_charts(groups, summaries, baseline),
        heldout=curves.heldout_charts(groups),
        sections=curves.curve_charts(groups),
        origins=origin_table(groups),
        times=curves.time_charts(groups),
        phases=curves.PHASES,
        cold_start=curves.charts_of(groups, curves.COLD_START, stage="sft"),
        trajectories=Markup(embed(trajectories)),
        shown=sum(len(each["trajectories"]) for each in trajectories),
        limit=MAX_TRAJECTORIES,
        trajectory_notes=trajectory_notes,
    )


def embed(value: object) -> str:
    """JSON for the inside of a script element: no character in it can end the element."""
    text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: object) -> object:
    """The same value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value


def _trajectories(groups: Groups) -> tuple[list[JsonObject], list[str]]:
    """(label, trajectories) of each variant, of its first run that wrote some; notes for people.

    Variants that retrieved come first.
    """
    share = max(1, MAX_TRAJECTORIES // max(1, len(groups)))
    variants: list[JsonObject] = []
    notes = []
    for label, runs in groups.items():
        paths = [(run, _files(run)) for run in runs if _files(run)]
        if not paths:
            notes.append(f"{label}: no trajectories.jsonl (log.trajectories is off?)")
            continue
        run, files = paths[0]
        name = label if run.seed is None else f"{label}, seed {run.seed}"
        for path, kind in files:
            chosen, total = choose_trajectories(path, max(1, share // len(files)))
            notes.append(f"{name}: {len(chosen)} of {total} {kind}")
            if chosen:
                title = name if kind == TRAJECTORIES else f"{name}, {kind}"
                variants.append({"label": title, "trajectories": chosen})
    return sorted(variants, key=lambda each: not any(map(_retrieves, each["trajectories"]))), notes


def _files(run: RunFiles) -> list[tuple[Path, str]]:
    """The files of a run that the viewer shows, and what they hold."""
    names = {"trajectories.jsonl": TRAJECTORIES, "samples.jsonl": "held-out samples"}
    return [(path, kind) for name, kind in names.items() if (path := run.workdir / name).is_file()]


def _retrieves(trajectory: JsonObject) -> bool:
    return any(each.get("source") == "RETRIEVED" for each in segments_of(trajectory))


def _kinds(groups: Groups) -> list[dict[str, object]]:
    """A row for each question type: accuracy before RL (all runs), then after it by variant."""
    everyone = [run for runs in groups.values() for run in runs]
    kinds = sorted(
        {k for r in everyone for w in ("before", "after") for k in accuracy_by_kind(r, w)}
    )
    return [
        {"name": kind, "before": _mean_kind(everyone, kind, "before"),
         "after": [_mean_kind(runs, kind, "after") for runs in groups.values()]}
        for kind in kinds
    ]  # fmt: skip


def _mean_kind(runs: Sequence[RunFiles], kind: str, when: str) -> float | None:
    """The mean over seeds; of several runs of one seed, their mean."""
    of_seeds = [
        [x for run in same if (x := accuracy_by_kind(run, when).get(kind)) is not None]
        for same in seed_groups(runs)
    ]
    means = [sum(each) / len(each) for each in of_seeds if each]
    return sum(means) / len(means) if means else None


def _differing_settings(groups: Groups) -> dict[str, list[str]]:
    """Setting -> its value in each variant, for the settings in which variants differ."""
    settings = [settings_of(runs[0]) for runs in groups.values()]
    keys = sorted({key for each in settings for key in each})
    table = {key: [each.get(key, "–") for each in settings] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def _difference_charts(
    groups: Groups, summaries: Sequence[Summary], baseline: str
) -> list[curves.Chart]:
    """Paired differences to the baseline, for all questions and for hidden ones."""
    drawn = []
    for title, measure in (("All questions", accuracy), ("Hidden words", hidden_accuracy)):
        rows = _differences(groups, summaries, baseline, measure)
        if rows:
            svg = charts.interval_chart(rows, xlabel=f"percentage points above {baseline}")
            drawn.append(curves.Chart(title, svg))
    return drawn


def _differences(
    groups: Groups, summaries: Sequence[Summary], baseline: str, measure: Measure
) -> list[charts.Interval]:
    """Of `measure`, accuracy or hidden_accuracy: mean, interval and each seed's, in points."""
    base = by_seed(groups.get(baseline, ()), measure)
    rows = []
    for colour, each in enumerate(summaries):
        gap = each.difference if measure is accuracy else each.hidden_difference
        if gap is None:
            continue
        ours = by_seed(groups[each.label], measure)
        dots = [100 * (ours[seed] - base[seed]) for seed in sorted(ours.keys() & base.keys())]
        mean, low, high = (100 * x for x in gap)
        rows.append(charts.Interval(each.label, mean, low, high, dots, colour))
    return rows
