"""Numbers of the page that the tables of `launch/sweep.py` do not have."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from rapo_jax.report import page
from rapo_jax.report.compare import paired_difference, summarise
from rapo_jax.report.runs import RunFiles, accuracy, hidden_accuracy


def run_of(method, seed, before, after, **more):
    """A run with accuracies `before` and `after` RL, by question type."""
    result = {f"accuracy_by_kind_{when}": of
              for when, of in (("before", before), ("after", after))}  # fmt: skip
    return RunFiles(Path(f"{method}{seed}"), {"method": method, "seed": seed}, result=result | more)


def test_a_question_type_has_its_accuracy_before_rl_of_all_runs_and_after_it_of_each_variant():
    groups = {
        "grpo": [run_of("grpo", 0, {"a": 0.1, "b": 0.3}, {"a": 0.5, "b": 0.7})],
        "rapo": [
            run_of("rapo", 0, {"a": 0.1, "b": 0.3}, {"a": 0.6}),
            run_of("rapo", 1, {"a": 0.3}, {"a": 0.8, "b": 0.9}),
        ],
    }
    a, b = page._kinds(groups)
    assert a == {"name": "a", "before": pytest.approx(0.2), "after": [0.5, pytest.approx(0.7)]}
    assert b == {"name": "b", "before": pytest.approx(0.3), "after": [0.7, 0.9]}


def test_runs_of_one_seed_count_as_one_in_the_accuracy_of_a_question_type():
    results = [(0, 0.2), (0, 0.4), (1, 0.9)]
    (a,) = page._kinds({"rapo": [run_of("rapo", seed, {}, {"a": x}) for seed, x in results]})
    assert a["after"] == [pytest.approx((0.3 + 0.9) / 2)] and a["before"] is None


def test_a_run_that_is_not_finished_has_its_accuracy_before_rl_alone():
    assert page._kinds({"rapo": [run_of("rapo", 0, {"a": 0.25}, {})]}) == [
        {"name": "a", "before": 0.25, "after": [None]}
    ]


ACCURACIES = {"grpo": (0.5, 0.56), "rapo": (0.62, 0.6)}
HIDDEN = {"grpo": (0.2, 0.4), "rapo": (0.1, 0.6)}
"""By seed; hidden words move otherwise than all questions."""


@pytest.fixture(scope="module")
def groups():
    return {
        method: [
            run_of(
                method, seed, {}, {}, accuracy_before=0.25, accuracy_after=x,
                hidden_after=HIDDEN[method][seed],
            )
            for seed, x in enumerate(values)
        ]
        for method, values in ACCURACIES.items()
    }  # fmt: skip


@pytest.mark.parametrize(("measure", "values"), [(accuracy, ACCURACIES), (hidden_accuracy, HIDDEN)])
def test_a_row_of_the_differences_is_of_its_measure_in_percentage_points(groups, measure, values):
    (row,) = page._differences(groups, summarise(groups, "grpo"), "grpo", measure)
    ours, theirs = np.array(values["rapo"]), np.array(values["grpo"])
    wanted = 100 * np.array(paired_difference(ours, theirs))
    assert (row.label, row.colour) == ("rapo", 1)
    assert (row.mean, row.low, row.high) == pytest.approx(tuple(wanted))
    assert row.values == pytest.approx(100 * (ours - theirs))


def test_the_differences_of_all_questions_and_of_hidden_words_are_under_their_own_titles(groups):
    drawn = page._difference_charts(groups, summarise(groups, "grpo"), "grpo")
    least = {}
    for chart in drawn:
        ticks = re.findall(r"<text[^>]*>(−?[\d.]+)</text>", chart.svg)
        least[chart.title] = min(float(x.replace("−", "-")) for x in ticks)
    # the interval of hidden words, of differences of -10 and +20 points, is the far wider one
    assert list(least) == ["All questions", "Hidden words"]
    assert least["Hidden words"] < 2 * least["All questions"] < 0


def test_only_settings_in_which_variants_differ_are_listed_each_with_its_own_value():
    runs = [
        RunFiles(Path(f"{m}"), {"method": "rapo", "rl": {"m": m, "a": 0.2}}) for m in (0.0, 0.1)
    ]
    assert page._differing_settings({"x": runs[:1], "y": runs[1:]}) == {"rl.m": ["0.0", "0.1"]}


def test_the_headline_of_one_variant_has_the_accuracies_before_and_after_and_their_difference(
    groups,
):
    text = page.render(groups["rapo"], baseline="grpo")
    tiles = re.findall(r"<div><b>([^<]*)</b><span>([^<]*)</span>", text)
    after, hidden = np.mean(ACCURACIES["rapo"]), np.mean(HIDDEN["rapo"])
    std = 100 * np.std(ACCURACIES["rapo"], ddof=1)
    assert [number for number, _ in tiles] == [
        "25.0 %", f"{100 * after:.1f} %", f"+{100 * (after - 0.25):.1f}", f"{100 * hidden:.1f} %"
    ]  # fmt: skip
    assert tiles[1][1] == f"accuracy after RL, ± {std:.1f} over 2 seeds"


def test_a_question_type_of_the_page_has_its_gain_over_the_start():
    runs = [run_of("rapo", 0, {"a": 0.25}, {"a": 0.75})]
    text = page.render(runs, baseline="grpo")
    assert re.search(r"<td>25\.0 %</td><td>75\.0 % <small[^>]*>\+50\.0</small></td>", text)
