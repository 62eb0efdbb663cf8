"""Held-out accuracy against CPU time as a separate picture, for a README or a paper."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from rapo_jax.report.compare import group_runs
from rapo_jax.report.costs import cpu_curve
from rapo_jax.report.curves import mean_lines
from rapo_jax.report.runs import load_run

PANELS = {"heldout/accuracy": "all questions", "heldout/hidden": "hidden words"}


def write_figure(workdirs: Sequence[Path], output: Path) -> bool:
    """Draws means over seeds with a band of one standard deviation; False if there is no curve."""
    import matplotlib
    from matplotlib.figure import Figure

    groups = group_runs([load_run(workdir) for workdir in workdirs])
    labels = list(groups)
    panels = {
        name: mean_lines(groups, functools.partial(cpu_curve, key=key), points=True)
        for key, name in PANELS.items()
    }
    if not any(panels.values()):
        return False
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "rapo_jax", "text.parse_math": False}
    ):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        for axes, (name, lines) in zip(
            figure.subplots(1, len(panels)), panels.items(), strict=True
        ):
            for line in lines:
                colour, label = f"C{line.colour}", labels[line.colour]
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, lw=0)
                axes.plot(line.x, line.y, color=colour, marker="o", ms=3, label=label)
            axes.set(title=f"held-out accuracy, {name}", xlabel="CPU-seconds of training")
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.4g} %")
            axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(output, metadata={"Date": None})
    return True
