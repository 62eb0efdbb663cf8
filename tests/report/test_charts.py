"""Charts as SVG text."""

from __future__ import annotations

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
