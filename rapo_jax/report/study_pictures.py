"""The pictures of the studies: variants with their seeds, curves over training, rollouts in 2-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rapo_jax.report.charts import Interval, draw_intervals, draw_lines, picture
from rapo_jax.report.compare import paired_difference
from rapo_jax.report.curves import mean_lines
from rapo_jax.report.runs import accuracy, series
from rapo_jax.report.studies import CONFIDENCE, MEASURES, Values, Variants

CURVES = {"reward/mean": "outcome reward", "entropy/policy": "entropy of the policy, nats"}


def draw_variants(variants: Variants, values: Values, measures: Sequence[str], file: Path) -> None:
    """A panel for each measure: mean and 95 % t interval of each variant, a dot for each seed."""
    labels = list(values)
    shown = [name for name in measures if any(values[label].get(name) for label in labels)]
    if not shown:
        return
    with picture(file, size=(3 + 2.6 * len(shown), 1 + 0.36 * len(labels))) as figure:
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, shown, strict=True):
            rows = []
            for label in labels:
                seeds = [x * MEASURES[name].scale for x in values[label].get(name, {}).values()]
                bounds = paired_difference(seeds, [0.0] * len(seeds), CONFIDENCE)
                rows.append(Interval(label, *bounds, seeds, 0))
            draw_intervals(axes, rows)
            axes.set_xlabel(MEASURES[name].name)
            axes.grid(alpha=0.3)


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
    labels = [f"{label}, {len(runs)} seeds" for label, runs in ended.items()]
    with picture(file, size=(9, 3.4)) as figure:
        for axes, (key, name) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
            draw_lines(axes, mean_lines(ended, partial(series, key=key)), labels)
            axes.set(title=name, xlabel="RL step")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize="small")


def draw_plane(points: Mapping[str, np.ndarray], file: Path) -> None:
    """Points on a plane, `[n, 2]` for each label, a colour for each."""
    with picture(file, size=(5.5, 4.5)) as figure:
        axes = figure.subplots()
        for label, plane in points.items():
            name = f"{label} ({len(plane)})"
            # thousands of points: as pixels they are a tenth of the file
            axes.plot(*plane.T, "o", ms=2.5, alpha=0.35, label=name, rasterized=True)
        axes.set(xlabel="first principal component", ylabel="second principal component")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
