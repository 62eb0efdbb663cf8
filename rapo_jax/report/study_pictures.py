"""The pictures of the studies: variants with their seeds, curves over training, rollouts in 2-D."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rapo_jax.report.charts import Line
from rapo_jax.report.compare import paired_difference
from rapo_jax.report.curves import mean_lines
from rapo_jax.report.runs import accuracy, series
from rapo_jax.report.studies import CONFIDENCE, MEASURES, Values, Variants

CURVES = {"reward/mean": "outcome reward", "entropy/policy": "entropy of the policy, nats"}


@contextlib.contextmanager
def picture(file: Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure, in inches, that is saved as SVG with its text as text, the same for equal data."""
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "rapo_jax", "text.parse_math": False}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(file, format="svg", metadata={"Date": None})


def draw_variants(variants: Variants, values: Values, measures: Sequence[str], file: Path) -> None:
    """A panel for each measure: mean and 95 % t interval of each variant, a dot for each seed."""
    labels = list(values)
    shown = [name for name in measures if any(values[label].get(name) for label in labels)]
    if not shown:
        return
    size = {"width": 3 + 2.6 * len(shown), "height": 1 + 0.36 * len(labels)}
    with picture(file, **size) as figure:
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, shown, strict=True):
            for place, label in enumerate(labels):
                seeds = [x * MEASURES[name].scale for x in values[label].get(name, {}).values()]
                if not seeds:
                    continue
                mean, low, high = paired_difference(seeds, [0.0] * len(seeds), CONFIDENCE)
                axes.plot(seeds, [place] * len(seeds), "o", ms=3, alpha=0.4, color="C0")
                axes.plot([low, high], [place, place], color="C0")
                axes.plot(mean, place, "D", ms=5, color="C0")
            axes.set(xlabel=MEASURES[name].name, yticks=range(len(labels)), yticklabels=labels)
            axes.grid(alpha=0.3)
        panels[0].invert_yaxis()


def draw_curves(variants: Variants, values: Values, measures: Sequence[str], file: Path) -> None:
    """Reward and entropy of each variant by RL step, mean over seeds, band of one deviation.

    Only runs with a final evaluation count; without any no picture is written.
    """
    ended = {
        label: [run for run in runs if accuracy(run) is not None]
        for label, runs in variants.items()
    }
    if not any(ended.values()):
        return
    with picture(file, width=9, height=3.4) as figure:
        for axes, (key, name) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
            labels = [f"{label}, {len(runs)} seeds" for label, runs in ended.items()]
            draw_lines(axes, mean_lines(ended, partial(series, key=key)), labels)
            axes.set(title=name, xlabel="RL step")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize="small")


def draw_lines(
    axes: Axes, lines: Sequence[Line], labels: Sequence[str], *, marker: str | None = None
) -> None:
    """Curves with their bands; `labels` are by the number of a line's colour."""
    for line in lines:
        colour, label = f"C{line.colour}", labels[line.colour]
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, lw=0)
        axes.plot(line.x, line.y, color=colour, marker=marker, ms=3, label=label)


def draw_plane(points: Mapping[str, np.ndarray], file: Path) -> None:
    """Points on a plane, `[n, 2]` for each label, a colour for each."""
    with picture(file, width=5.5, height=4.5) as figure:
        axes = figure.subplots()
        for label, plane in points.items():
            name = f"{label} ({len(plane)})"
            # thousands of points: as pixels they are a tenth of the file
            axes.plot(*plane.T, "o", ms=2.5, alpha=0.35, label=name, rasterized=True)
        axes.set(xlabel="first principal component", ylabel="second principal component")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
