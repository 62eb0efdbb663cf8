"""Charts as inline SVG text. Colours are CSS variables, so that charts follow the page's theme.

Matplotlib needs colours, so each variable is drawn as a stand-in colour that nothing else uses, and
replaced in the finished SVG.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

NUM_COLOURS = 8
SMALL, WIDE = (4.3, 2.5), (6.4, 3.2)
"""Inches of charts in lines of three and of two: their text has the same size on the page."""
STYLES = ("-", "--", ":")
"""A variant beyond the eight colours gets the same colour with another dash."""
INK, GRID = "#010203", "#010204"
COLOURS = {f"#0a0b{index:02x}": f"var(--c{index})" for index in range(NUM_COLOURS)}
STAND_INS = {INK: "var(--muted)", GRID: "var(--grid)"} | COLOURS
SVG: dict[RcKeyType, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rapo_jax",
    "text.parse_math": False,
}
"""Text stays text, and equal data give an equal file."""
SETTINGS: dict[RcKeyType, object] = {
    **SVG,
    "savefig.transparent": True,
    "font.size": 9,
    "text.color": INK,
    "axes.prop_cycle": f"cycler(color={[*COLOURS]})",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


class Line(NamedTuple):
    """A curve with its band (`low` = `high` = `y` for none); `points` marks each measurement."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: int
    points: bool = False


class Interval(NamedTuple):
    """A mean with its interval (NaN for none) and the single values behind it."""

    label: str
    mean: float
    low: float
    high: float
    values: Sequence[float]
    colour: int


def line_chart(
    lines: Sequence[Line], *, xlabel: str, percent: bool, size: tuple[float, float] = SMALL
) -> str:
    """Curves over one axis, each with its band."""

    def draw(axes: Axes) -> None:
        draw_lines(axes, lines)
        axes.set_xlabel(xlabel)
        _whole_ticks(axes, [line.x for line in lines])
        if percent:
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.4g} %")
        axes.margins(x=0.02)

    return _svg(draw, size=size)


def draw_lines(axes: Axes, lines: Sequence[Line], labels: Sequence[str] = ()) -> None:
    """Curves with their bands; `labels` are by the number of a line's colour."""
    for line in lines:
        colour = f"C{line.colour}"
        style = STYLES[line.colour // NUM_COLOURS % len(STYLES)]
        marker = "o" if line.points or line.x.size == 1 else None
        label = labels[line.colour] if labels else None
        if np.any(line.high > line.low):
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, lw=0)
        axes.plot(line.x, line.y, style, color=colour, lw=1.6, marker=marker, ms=3.2, label=label)


def _whole_ticks(axes: Axes, places: Sequence[np.ndarray]) -> None:
    """Only whole ticks, if every curve has whole steps."""
    from matplotlib.ticker import MaxNLocator

    if all(np.all(x == np.round(x)) for x in places):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def area_chart(x: np.ndarray, parts: np.ndarray, *, xlabel: str, ylabel: str) -> str:
    """A stack of parts [n, len(x)] over x."""

    def draw(axes: Axes) -> None:
        axes.stackplot(x, *parts, alpha=0.75, lw=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _whole_ticks(axes, [x])
        axes.margins(x=0)

    return _svg(draw, size=WIDE)


def bar_chart(labels: Sequence[str], parts: Sequence[Sequence[float]], *, xlabel: str) -> str:
    """One horizontal bar for each label, made of parts: `parts[i][j]` of part i and label j."""

    def draw(axes: Axes) -> None:
        place = np.arange(len(labels))
        left = np.zeros(len(labels))
        for index, part in enumerate(parts):
            axes.barh(place, part, left=left, height=0.6, color=f"C{index}", alpha=0.75)
            left = left + np.asarray(part)
        axes.set_yticks(place, labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(xlabel)

    return _svg(draw, size=(7.2, 0.7 + 0.36 * len(labels)))


def interval_chart(rows: Sequence[Interval], *, xlabel: str) -> str:
    """`draw_intervals`, with a line at 0."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, lw=0.8)
        draw_intervals(axes, rows)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(xlabel)

    return _svg(draw, size=(7.2, 0.7 + 0.36 * len(rows)))


def draw_intervals(axes: Axes, rows: Sequence[Interval]) -> None:
    """Means with their intervals, one row each, and single values as small dots."""
    for place, row in enumerate(rows):
        colour = f"C{row.colour}"
        axes.plot(row.values, [place] * len(row.values), "o", color=colour, ms=4, alpha=0.4)
        if np.isfinite(row.low):
            axes.plot([row.low, row.high], [place, place], color=colour, lw=2.2)
        axes.plot([row.mean], [place], "D", color=colour, ms=6)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


@contextlib.contextmanager
def picture(
    file: Path | IO[str], *, size: tuple[float, float], settings: dict[RcKeyType, object] = SVG
) -> Iterator[Figure]:
    """A figure of a size in inches that is then saved as SVG, the same for equal data."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=none)


def _svg(draw: Callable[[Axes], None], *, size: tuple[float, float]) -> str:
    buffer = io.StringIO()
    with picture(buffer, size=size, settings=SETTINGS) as figure:
        draw(figure.add_subplot())
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Group names such as axes_1 repeat in every chart; nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for size_name in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {size_name}="[^"]*"', r"\1", text, count=1)
    return re.sub("|".join(STAND_INS), lambda stand_in: STAND_INS[stand_in.group()], text)
