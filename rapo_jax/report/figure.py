"""Held-out accuracy against CPU time as a separate picture, for a README or a paper."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from rapo_jax.report.charts import draw_lines, picture
from rapo_jax.report.compare import group_runs
from rapo_jax.report.costs import cpu_curve
from rapo_jax.report.curves import mean_lines
from rapo_jax.report.runs import load_run

PANELS = {"heldout/accuracy": "all questions", "heldout/hidden": "hidden words"}


def write_figure(workdirs: Sequence[Path], output: Path) -> bool:
    """Draws means over seeds with a band of one standard deviation; False if there is no curve."""
    groups = group_runs([load_run(workdir) for workdir in workdirs])
    panels = {
        name: mean_lines(groups, functools.partial(cpu_curve, key=key), points=True)
        for key, name in PANELS.items()
    }
    if not any(panels.values()):
        return False
    drawn = {name: lines for name, lines in panels.items() if lines}
    with picture(output, size=(4.5 * len(drawn), 3.4)) as figure:
        plots = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (name, lines) in zip(plots, drawn.items(), strict=True):
            draw_lines(axes, lines, list(groups))
            axes.set(title=f"held-out accuracy, {name}", xlabel="CPU-seconds of training")
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.4g} %")
            axes.grid(alpha=0.3)
        fullest = max(plots[::-1], key=lambda axes: len(axes.lines))
        fullest.legend(fontsize="small")
    return True
