"""Held-out accuracy against CPU time as a picture that stands alone, for a README or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapo_jax.report.compare import cpu_curve, group_runs
from rapo_jax.report.curves import mean_lines
from rapo_jax.report.runs import load_run

PANELS = {"heldout/accuracy": "all questions", "heldout/hidden": "hidden words"}


def write_figure(workdirs: Sequence[Path], output: Path) -> bool:
    """Draws means over seeds with a band of one standard deviation; false if there is no curve."""
    import matplotlib
    from matplotlib.figure import Figure

    groups = group_runs([load_run(workdir) for workdir in workdirs])
    labels = list(groups)
    found = {
        name: mean_lines(groups, lambda run, key=key: cpu_curve(run, key), points=True)  # type: ignore[misc]
        for key, name in PANELS.items()
    }
    if not any(found.values()):
        return False
    plain: Any = {"svg.fonttype": "none", "svg.hashsalt": "rapo_jax", "text.parse_math": False}
    with matplotlib.rc_context(plain):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        for axes, (name, lines) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
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
