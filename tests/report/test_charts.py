"""Charts as SVG text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from rapo_jax.report import charts

X = np.arange(3.0)
HOSTILE = '</svg><script>alert("$x$")</script>'


def all_kinds():
    line = charts.Line(X, X, X - 1, X + 1, 0)
    interval = charts.Interval(HOSTILE, 1.0, 0.5, 1.5, [0.9, 1.1], 1)
    return {
        "line": charts.line_chart([line, line._replace(colour=9)], xlabel=HOSTILE, percent=True),
        "area": charts.area_chart(X, np.ones((4, 3)), xlabel="step", ylabel="seconds"),
        "flat": charts.line_chart([line._replace(y=0 * X + 0.1)], xlabel="step", percent=False),
        "bar": charts.bar_chart([HOSTILE], [[1.0], [2.0]], xlabel="seconds"),
        "interval": charts.interval_chart(
            [interval, interval._replace(low=np.nan, high=np.nan)], xlabel="points"
        ),
    }


def test_every_chart_is_one_well_formed_svg_element_also_with_hostile_labels():
    for name, svg in all_kinds().items():
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg"), name
        assert not [node for node in root.iter() if node.tag.endswith("script")], name


def test_colours_are_variables_of_the_page_and_text_stays_text():
    svg = all_kinds()["line"]
    assert "var(--c0)" in svg and "var(--c1)" in svg and "var(--muted)" in svg
    assert not any(stand_in in svg for stand_in in charts.STAND_INS)
    assert "<text" in svg


def test_an_element_name_is_unique_in_a_chart_and_the_same_chart_is_the_same_text():
    svg = all_kinds()["area"]
    names = [node.get("id") for node in ElementTree.fromstring(svg).iter() if node.get("id")]
    assert len(names) == len(set(names))
    assert svg == all_kinds()["area"]


def sides_of(svg, colour):
    """The least and the largest x of the bar in a colour."""
    (path,) = re.findall(rf'<path d="([^"]*)"[^>]*fill: var\(--c{colour}\)', svg)
    xs = [float(x) for x, _ in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]
    return min(xs), max(xs)


def height_of(svg, word):
    """How far below the top of a chart a text is."""
    (text,) = re.findall(rf"<text([^>]*)>{word}</text>", svg)
    return float(re.search(r'(?:translate\([-\d.]+ |y=")([-\d.]+)', text)[1])


def test_the_parts_of_a_bar_follow_each_other():
    svg = charts.bar_chart(["a"], [[1.0], [2.0], [4.0]], xlabel="seconds")
    first, second, third = (sides_of(svg, colour) for colour in range(3))
    assert (first[1], second[1]) == (second[0], third[0])
    widths = [right - left for left, right in (first, second, third)]
    np.testing.assert_allclose(np.array(widths) / widths[0], [1, 2, 4], rtol=1e-4)


def test_the_first_row_is_the_topmost_in_bars_and_in_intervals():
    rows = [charts.Interval(name, 1.0, 0.5, 1.5, [1.0], 0) for name in ("one", "two")]
    for svg in (
        charts.bar_chart(["one", "two"], [[1.0, 2.0]], xlabel="seconds"),
        charts.interval_chart(rows, xlabel="points"),
    ):
        assert height_of(svg, "one") < height_of(svg, "two")


class Axes:
    """Notes what is drawn."""

    def __init__(self):
        self.plots, self.bands = [], []

    def plot(self, x, y, style="-", **more):
        self.plots.append((list(x), list(y), style, more))

    def fill_between(self, x, low, high, **more):
        self.bands.append((list(low), list(high)))

    def set_yticks(self, *_):
        pass

    set_ylim = set_yticks


def test_a_line_has_the_label_of_its_variant_its_band_and_from_the_ninth_on_another_dash():
    line = charts.Line(X, X, X - 1, X + 2, 2)
    axes = Axes()
    charts.draw_lines(axes, [line, line._replace(colour=8)], [f"v{n}" for n in range(9)])
    assert [more["label"] for *_, more in axes.plots] == ["v2", "v8"]
    assert axes.bands == [((X - 1).tolist(), (X + 2).tolist())] * 2
    styles = [style for *_, style, _ in axes.plots]
    assert styles[0] == "-" != styles[1]


def test_a_row_of_intervals_has_its_mean_its_bounds_and_a_dot_for_each_value():
    axes = Axes()
    charts.draw_intervals(axes, [charts.Interval("a", 3.0, 1.0, 6.0, [1.0, 2.0, 6.0], 0)])
    assert [x for x, *_ in axes.plots] == [[1.0, 2.0, 6.0], [1.0, 6.0], [3.0]]
